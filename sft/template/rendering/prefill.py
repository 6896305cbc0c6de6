"""Prefilled answers, which begin in the prompt: where the rest of one begins in a rendered text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unicodedata import category


class Unlabelable(ValueError):
    """A conversation whose trained text cannot be determined; the message says why."""


def trained_from(text: str, start: int, end: int, message: Mapping[str, Any], turn: int) -> int:
    """Where the trained part of a turn begins: after its `prefill`, if it has one.

    Args:
        text: the rendered text.
        start, end: the turn's position in it, its stop token included.
        message: the assistant's message.
        turn: the message's index in the conversation.

    Raises:
        Unlabelable: the template rewrites the content, so that its prefill cannot be found.
    """
    prefill = message.get("prefill")
    if not prefill:
        return start
    content = message["content"]
    begun = _end_in(content, prefill)
    place = text.find(content, start, end)
    if place >= 0 and begun is not None:
        return place + begun
    words = content.strip()  # templates that trim
    place = text.find(words, start, end)
    if place < 0 or begun is None:
        raise Unlabelable(f"the chat template rewrites a prefilled answer: message {turn + 1}")
    trimmed = len(content) - len(content.lstrip())
    return place + min(max(0, begun - trimmed), len(words))


def _end_in(content: str, beginning: str) -> int | None:
    """Where a prefill ends in a content, ignoring private-use characters that were put into the content."""
    if content.startswith(beginning):
        return len(beginning)
    at = 0
    for character in beginning:
        while content[at : at + 1] != character:
            if at >= len(content) or category(content[at]) != "Co":
                return None
            at += 1
        at += 1
    return at
