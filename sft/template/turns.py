"""One assistant turn in a rendered text: where it begins, where it ends, and what generation sees of it.

The prompt of a turn is the text of the messages before it with the generation prompt. What the model has to produce
is what the text of the messages up to the turn adds, to the stop token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sft.template.bound import BoundTemplate
from sft.template.conversation import Conversation
from sft.template.messages import Marked, reasoning_of

_PIECES = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]|\w+|\s+|.", re.DOTALL)
_TAGS = re.compile(r"(?:<[^<>\s]*>|\s)*")
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


class Unlabelable(ValueError):
    """A conversation whose trained text cannot be told; the message says why."""


@dataclass(frozen=True)
class Turn:
    """A turn as generation sees it.

    Args:
        text: the prompt, the turn, and what the template writes after it.
        start: where the prompt ends.
        end: where the stop token ends.
        spliced: whether the template itself does not render the turn after its own generation prompt.
    """

    text: str
    start: int
    end: int
    spliced: bool = False

    @property
    def seen(self) -> str:
        """The prompt and the turn, to the stop token."""
        return self.text[: self.end]


def as_generated(conversation: Conversation, turn: int, full: str, splice: bool = True) -> Turn | None:
    """A turn as generation sees it; None where only splicing could show it and `splice` is False.

    Args:
        full: the text of the messages up to this turn.
        splice: whether to put the prompt before the turn's text where the template does not.

    Raises:
        Unlabelable: the turn is empty, or not all of it reaches the text.
        RenderError: the template cannot render the messages before it.
    """
    message = conversation.messages[turn]
    check_not_empty(message, turn)
    prompt = conversation.prompt(turn)
    spliced = not full.startswith(prompt)
    if spliced:
        if not splice:
            return None
        full = _splice(conversation, turn, prompt, full)
    start = len(prompt)
    end = end_of(conversation.bound, full, start, message)
    if end is None:
        full += stop_of(conversation.bound, message)
        end = len(full)
    check_whole(full[start:end], message, turn, with_reasoning=True)
    return Turn(full, start, end, spliced)


def as_history(conversation: Conversation, turn: int, text: str, marked: Marked) -> tuple[int, int]:
    """Where a turn stands in a text that renders it unlike generation: between the contents before and after it.

    Args:
        text: the text of the whole conversation, with a stop token added where the template leaves the end open.
        marked: the same text with the other roles' contents.

    Raises:
        Unlabelable: the turn cannot be found there.
    """
    message, count = conversation.messages[turn], len(conversation.messages)
    around = [index for index in (turn - 1, turn + 1) if 0 <= index < count]
    if turn == 0 or not marked.seen().issuperset(around):
        raise Unlabelable(f"a turn that is rendered as history cannot be found: message {turn + 1}")
    begin, limit = marked.before(turn), marked.after(turn) if turn + 1 < count else len(text)
    start = begin + _header(conversation, turn, text[begin:limit])
    end = end_of(conversation.bound, text, start, message, limit)
    if end is None:
        raise Unlabelable(f"a turn has no stop token where it is rendered as history: message {turn + 1}")
    check_whole(text[start:end], message, turn, with_reasoning=False)
    return start, end


def end_of(
    bound: BoundTemplate, text: str, start: int, message: Mapping[str, Any], limit: int | None = None
) -> int | None:
    """Where a turn ends: after the first stop token that follows its words; None where there is none.

    Raises:
        Unlabelable: a stop token is part of the words, so that the model would learn to stop inside them.
    """
    limit = len(text) if limit is None else limit
    place = start
    for words in said(message, with_reasoning=True):
        if token := next((token for token in bound.stop_tokens if token in words), None):
            raise Unlabelable(f"an assistant turn holds a stop token as text: {token}")
        found = text.find(words, place, limit)
        place = found + len(words) if found >= 0 else place
    ends = [at + len(token) for token in bound.stop_tokens if (at := text.find(token, place, limit)) >= 0]
    return min(ends, default=None)


def stop_of(bound: BoundTemplate, message: Mapping[str, Any]) -> str:
    """The token that has to end a turn which the template leaves open."""
    if message.get("tool_calls") and bound.tool_stop:
        return bound.tool_stop
    if not bound.stop_tokens:
        raise Unlabelable("the chat template ends no turn, and the tokenizer has no end-of-sentence token")
    return bound.stop_tokens[0]


def said(message: Mapping[str, Any], with_reasoning: bool) -> list[str]:
    """What must be found of an assistant message, in the order in which templates write it."""
    content = (message.get("content") or "").strip()
    words = [reasoning_of(message).strip()] if with_reasoning else []
    words.append(content.rpartition(THINK_CLOSE)[2].strip())
    for call in message.get("tool_calls") or []:
        words.append(str((call.get("function") or call).get("name") or ""))
    return [piece for piece in words if piece]


def check_not_empty(message: Mapping[str, Any], turn: int) -> None:
    """Refuse a turn that neither says nor calls anything. Raises Unlabelable."""
    if not said(message, with_reasoning=False):
        raise Unlabelable(f"an assistant turn is empty: message {turn + 1}")


def check_turn(span: str, message: Mapping[str, Any], turn: int) -> None:
    """Refuse an empty turn, and one of which not all reached the text. Raises Unlabelable."""
    check_not_empty(message, turn)
    check_whole(span, message, turn, with_reasoning=True)


def check_whole(span: str, message: Mapping[str, Any], turn: int, with_reasoning: bool) -> None:
    """Refuse a turn of which not all reached the text.

    Raises:
        Unlabelable: naming the words that are missing.
    """
    for words in said(message, with_reasoning):
        if words not in span:
            short = words if len(words) <= 60 else words[:57] + "…"
            raise Unlabelable(f"the chat template drops or rewrites part of a turn: message {turn + 1}, {short!r}")


def _splice(conversation: Conversation, turn: int, prompt: str, full: str) -> str:
    """The prompt followed by the turn, for a template whose text of the turn does not begin with its own prompt.

    What the prompt and the turn share is not repeated. A think block that the prompt opens and the turn does not
    close is closed here, after the turn's own reasoning or empty: that is what the model has to produce before its
    answer, where the template drops reasoning (DeepSeek R1).
    """
    rest = _after_shared(prompt, full)
    if rest is None:
        marked = conversation.marked(turn + 1)
        if marked is None or marked.text != full or turn - 1 not in marked.seen():
            raise Unlabelable(f"a turn does not follow the generation prompt: message {turn + 1}")
        region = full[marked.before(turn) :]
        rest = region[_header(conversation, turn, region) :]
    reasoning = reasoning_of(conversation.messages[turn]).strip()
    if opens_thinking(prompt):
        if THINK_CLOSE not in rest:
            closing = f"{THINK_CLOSE}\n\n" + rest.lstrip("\n")
            rest = f"{reasoning}\n{closing}" if reasoning else closing
    elif reasoning and reasoning in rest:
        raise Unlabelable(f"the generation prompt leaves no room for a turn's reasoning: message {turn + 1}")
    return prompt + rest


def _after_shared(prompt: str, full: str) -> str | None:
    """The turn's text without what it shares with the prompt, where they part in the prompt's last tags alone."""
    shared = next((at for at, (one, other) in enumerate(zip(prompt, full, strict=False)) if one != other), 0)
    tail = max(0, shared - 60)
    shared = tail + common_header(prompt[tail:], full[tail:])
    return full[shared:] if _TAGS.fullmatch(prompt, shared) else None


def opens_thinking(prompt: str) -> bool:
    """Whether a generation prompt ends inside a think block."""
    tail = prompt[prompt.rfind(THINK_OPEN) :] if THINK_OPEN in prompt else ""
    return bool(tail) and len(tail) < 40 and THINK_CLOSE not in tail


def _header(conversation: Conversation, turn: int, region: str) -> int:
    """How many characters of a region, which begins after the content before the turn, the prompt writes."""
    prompt = conversation.marked(turn, add_generation_prompt=True)
    if prompt is None:
        raise Unlabelable(f"a turn cannot be found in the text: message {turn + 1}")
    return common_header(prompt.text[prompt.before(turn) :], region)


def common_header(prompt: str, region: str) -> int:
    """How many characters two texts share at their start, back to the end of a whole word or tag of the first."""
    shared = 0
    for piece in _PIECES.findall(prompt):
        if not region.startswith(piece, shared):
            break
        shared += len(piece)
    return shared
