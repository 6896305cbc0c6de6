"""Answers of which the prompt holds the beginning: where the rest of one begins in a rendered text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Unlabelable(ValueError):
    """A conversation whose trained text cannot be told; the message says why."""


def trained_from(text: str, start: int, end: int, message: Mapping[str, Any], turn: int) -> int:
    """Where the trained part of a turn begins: after the first `prefill` characters of its content, if it has any.

    Args:
        text: the rendered text.
        start, end: where the turn stands in it, its stop token included.
        message: the assistant's message.
        turn: which of the conversation it is.

    Raises:
        Unlabelable: the template rewrites the content, so that its beginning cannot be told.
    """
    prefill = message.get("prefill")
    if not prefill:
        return start
    content = message["content"]
    place = text.find(content, start, end)
    if place >= 0:
        return place + prefill
    words = content.strip()  # templates that trim
    place = text.find(words, start, end)
    if place < 0:
        raise Unlabelable(f"the chat template rewrites an answer that the prompt begins: message {turn + 1}")
    trimmed = len(content) - len(content.lstrip())
    return place + min(max(0, prefill - trimmed), len(words))
