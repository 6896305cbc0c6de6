"""From characters to tokens, by the offsets of an encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sft.data.documents import IGNORE
from sft.template.rendering.spans import Rendered


def tokens_between(encoding: Any, start: int, end: int) -> tuple[int, int, int, int] | None:
    """The tokens that lie within characters [start, end).

    A token that straddles an edge is left out: part of it belongs to the prompt, so the model never produces it there.
    Tokenizers that trim offsets leave out a token's leading space; it is counted as part of the token.

    Args:
        encoding: of `tokenizers`, with offsets.

    Returns:
        First token, last token, and the characters (start, end) that they cover; None where no token lies within.
    """
    first = next((token for at in range(start, end) if (token := encoding.char_to_token(at)) is not None), None)
    if first is None:
        return None
    last = next(token for at in range(end - 1, start - 1, -1) if (token := encoding.char_to_token(at)) is not None)
    chars, count = encoding.token_to_chars, len(encoding)  # one token's offsets, because listing all is slow
    # one character may be several tokens, and a token of trimmed spaces covers no character
    while first > 0 and chars(first - 1)[0] >= start and chars(first - 1)[1] > start:
        first -= 1
    while first <= last and chars(first)[0] < start:
        first += 1
    while last + 1 < count and chars(last + 1)[0] < end and chars(last + 1)[1] <= end:
        last += 1
    while last >= first and chars(last)[1] > end:
        last -= 1
    if first > last:
        return None
    before = chars(first - 1)[1] if first else 0
    return first, last, max(start, before), chars(last)[1]


def prefill_splits_a_token(conversation: Mapping[str, Any], pairs: Sequence[tuple[Rendered, Any]]) -> str | None:
    """The problem of an answer whose prefill ends in the middle of a token; None where there is none."""
    messages = conversation.get("messages", ())
    if not any("prefill" in message for message in messages):
        return None
    for row, encoding in pairs:
        for turn, (start, _) in zip(row.turns, row.spans, strict=True):
            token = encoding.char_to_token(start) if "prefill" in messages[turn] else None
            if token is not None and encoding.token_to_chars(token)[0] < start:
                return (
                    "the beginning of the answer in the prompt ends inside a token of the answer: "
                    f"message {turn + 1}; let the completion begin with the space between them"
                )
    return None


def pieces_of(text: str, labels: Sequence[int], offsets: Sequence[tuple[int, int]]) -> list[str]:
    """The trained stretches as text."""
    out: list[list[int]] = []
    before = 0
    trained = False
    for label, (_, end) in zip(labels, offsets, strict=True):
        if label != IGNORE and trained:
            out[-1][1] = end
        elif label != IGNORE:
            out.append([before, end])
        trained = label != IGNORE
        before = end
    return [text[start:end] for start, end in out]
