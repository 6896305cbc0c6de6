"""Conversations replayed with a model: the user's turns from the data, the answers from the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Turn:
    """One answer.

    Attributes:
        messages: the turns before it, including the model's own earlier answers.
        answer: the model's answer.
        reference: the data's answer in its place; None where the data ends with the user's turn.
    """

    messages: list[dict[str, Any]]
    answer: str
    reference: str | None


def replay(
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    answer_all: Callable[[Sequence[list[dict[str, Any]]], Sequence[int], int], Sequence[str]],
) -> list[list[Turn]]:
    """Replay each conversation; the k-th answers of all conversations are generated together.

    Where an assistant turn is followed by others before the next user turn (tool calls), all of these are the data's
    answer, and one answer of the model takes their place.

    Args:
        conversations: messages with `role` and `content`.
        answer_all: the model: (histories, indices of their conversations, index of the turn) -> answers.

    Returns:
        The turns of each conversation.
    """
    asked = [_asked(messages) for messages in conversations]
    histories: list[list[dict[str, Any]]] = [[] for _ in asked]
    turns: list[list[Turn]] = [[] for _ in asked]
    for k in range(max(map(len, asked), default=0)):
        going = [i for i, parts in enumerate(asked) if k < len(parts)]
        for i in going:
            histories[i].extend(asked[i][k][0])
        answers = answer_all([list(histories[i]) for i in going], going, k)
        for i, answer in zip(going, answers, strict=True):
            turns[i].append(Turn(list(histories[i]), answer, asked[i][k][1]))
            histories[i].append({"role": "assistant", "content": answer})
    return turns


def _asked(messages: Sequence[Mapping[str, Any]]) -> list[tuple[list[dict[str, Any]], str | None]]:
    """Pairs of (turns that go before an answer, its reference)."""
    pairs: list[tuple[list[dict[str, Any]], str | None]] = []
    before: list[dict[str, Any]] = []
    reference: str | None = None
    answered = False
    for message in messages:
        if message["role"] in ("system", "user", "developer"):
            if answered:
                pairs.append((before, reference))
                before, reference, answered = [], None, False
            before.append(dict(message))
        elif any(each["role"] == "user" for each in before):
            answered = True
            if message["role"] == "assistant" and message.get("content"):
                reference = str(message["content"]).strip()
        # an assistant's greeting before the first user turn is not a question; it stays in the history
        else:
            before.append(dict(message))
    if any(each["role"] == "user" for each in before):
        pairs.append((before, reference))
    return pairs
