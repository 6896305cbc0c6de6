"""Evaluation conversations as questions: the prompt for generation, and the reference answer of the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class Renders(Protocol):
    """The part of a bound chat template that this package needs."""

    stop_tokens: list[str]

    def render(self, conversation: Mapping[str, Any], add_generation_prompt: bool = False) -> str:
        """The conversation's text."""


@dataclass(frozen=True)
class Question:
    """One row to answer.

    Args:
        source: name of its source.
        row: its number in the source, from 0.
        messages: the turns before the answer.
        prompt: the turns as text, ending with the generation prompt.
        reference: the last assistant turn, as text.
        turn: index of the answer in its conversation, from 0, where all of them are generated.
    """

    source: str
    row: int
    messages: list[dict[str, Any]]
    prompt: str
    reference: str
    turn: int = 0


def make_questions(
    bound: Renders, conversations: Iterable[Mapping[str, Any]], source: str, limit: int | None = None
) -> list[Question]:
    """Turn conversations into questions; those without an assistant turn (raw text) are left out.

    Args:
        bound: the chat template.
        conversations: `{"messages": [...], "tools": [...]}`.
        source: their source's name.
        limit: at most so many questions; None for all.
    """
    questions: list[Question] = []
    for row, conversation in enumerate(conversations):
        if limit is not None and len(questions) >= limit:
            break
        messages = conversation.get("messages") or []
        last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
        if last == 0:
            continue
        asked = {**conversation, "messages": list(messages[:last])}
        prompt = bound.render(asked, add_generation_prompt=True)
        answered = {**conversation, "messages": list(messages[: last + 1])}
        questions.append(Question(source, row, asked["messages"], prompt, reference_of(bound, answered, prompt)))
    return questions


def reference_of(bound: Renders, conversation: Mapping[str, Any], prompt: str) -> str:
    """The text that the model should produce for a conversation's last turn.

    For a plain answer it is the content. A tool call exists as text only in the template's own notation, so it is taken
    from the rendered conversation.
    """
    message = conversation["messages"][-1]
    content = (message.get("content") or "").strip()
    if not message.get("tool_calls"):
        return content
    text = bound.render(conversation)
    if not text.startswith(prompt):
        return content
    said = text[len(prompt) :]
    ends = [place for stop in bound.stop_tokens if (place := said.find(stop)) >= 0]
    return said[: min(ends, default=len(said))].strip()
