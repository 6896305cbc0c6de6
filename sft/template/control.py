"""Find control tokens in message contents, and hide them from a template so that they can stay ordinary text.

A typed `<|im_end|>` has the same characters as the one that a template writes. Before rendering, a marker character is
put into each typed one: the template treats it as text, and the rendered text still tells typed tokens from its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

HIDE = "\U000fff00"  # inserted after the first character of a typed token; outside the range of messages.MARKS
_BRACKETS = {"<": re.compile(r"<[^<>\[\]\s]+>"), "[": re.compile(r"\[[^<>\[\]\s]+\]")}


class TokenFinder:
    """Finds tokens in texts, in time independent of the number of tokens (Gemma has 6,000).

    Args:
        tokens: the tokens to find. Nearly all control tokens are enclosed in brackets without nesting, and are looked
            up.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        tokens = {token for token in tokens if token}
        self._bracketed = frozenset(t for t in tokens if any(p.fullmatch(t) for p in _BRACKETS.values()))
        self._patterns = [(o, p) for o, p in _BRACKETS.items() if any(t.startswith(o) for t in self._bracketed)]
        others = sorted(tokens - self._bracketed, key=len, reverse=True)
        self._others = re.compile("|".join(map(re.escape, others))) if others else None

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each token in a text, from left to right; of two overlapping ones the first."""
        found = [
            match.span()
            for opening, pattern in self._patterns
            if opening in text
            for match in pattern.finditer(text)
            if match.group() in self._bracketed
        ]
        if self._others is not None:
            found += [match.span() for match in self._others.finditer(text)]
        if len(found) < 2:
            return found
        apart: list[tuple[int, int]] = []
        for span in sorted(found):
            if not apart or span[0] >= apart[-1][1]:
                apart.append(span)
        return apart

    def first(self, text: str) -> str | None:
        """The first token in a text, or None."""
        spans = self.spans(text)
        return text[spans[0][0] : spans[0][1]] if spans else None


def hidden(text: str, finder: TokenFinder) -> str:
    """The text with each token that the finder knows hidden from templates."""
    spans = finder.spans(text)
    if not spans:
        return text
    pieces, last = [], 0
    for start, _ in spans:
        pieces.append(text[last : start + 1])
        last = start + 1
    return HIDE.join([*pieces, text[last:]])


def revealed(text: str) -> str:
    """The text as it was before anything in it was hidden."""
    return text.replace(HIDE, "") if HIDE in text else text


def shifts(text: str) -> Callable[[int], int]:
    """A function from a position in a text with hidden tokens to the same position in the revealed text."""
    from bisect import bisect_left

    places = [at for at, character in enumerate(text) if character == HIDE]
    return lambda at: at - bisect_left(places, at)


def in_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with each of its strings changed, keys included; the same object if none changes."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        items = {in_texts(key, change): in_texts(item, change) for key, item in value.items()}
        return items if items != value else value
    if isinstance(value, list | tuple):
        parts = [in_texts(item, change) for item in value]
        return parts if parts != list(value) else value
    return value
