"""The texts as which a conversation is trained, and the characters in them that the model has to produce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sft.template.bound import BoundTemplate
from sft.template.control import HIDE, revealed, shifts
from sft.template.rendering.conversation import Conversation
from sft.template.rendering.messages import Marked
from sft.template.rendering.prefill import trained_from
from sft.template.rendering.render import RenderError
from sft.template.rendering.turns import Turn, Unlabelable, as_generated, as_history, end_of, stop_of

__all__ = ["Rendered", "Unlabelable", "is_on", "render_rows", "trained_turns"]


@dataclass
class Rendered:
    """A text with the spans to train in it.

    Args:
        text: the conversation as the model sees it.
        spans: (start, end) in characters, in order: what the model has to produce.
        turns: the message that each span is.
        upto: how many of the messages the text contains.
        spliced: whether we put the generation prompt before the last turn because the template does not.
        masked: (start, end) inside the spans that are not trained, of messages that are switched off.
        others: (start, end) of user, system and tool contents; filled only for `train_on=all`.
    """

    text: str
    spans: list[tuple[int, int]] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    upto: int = 0
    spliced: bool = False
    masked: list[tuple[int, int]] = field(default_factory=list)
    others: list[tuple[int, int]] = field(default_factory=list)

    def add(self, turn: int, start: int, end: int) -> None:
        """Train these characters, in the order of the text."""
        at = sum(span < (start, end) for span in self.spans)
        self.spans.insert(at, (start, end))
        self.turns.insert(at, turn)

    def revealed(self) -> Rendered:
        """The row with the hidden tokens in its text revealed (see sft.template.control), and its spans shifted."""
        if HIDE not in self.text:
            return self
        moved = shifts(self.text)

        def all_moved(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
            return [(moved(start), moved(end)) for start, end in spans]

        spans, masked, others = map(all_moved, (self.spans, self.masked, self.others))
        return replace(self, text=revealed(self.text), spans=spans, masked=masked, others=others)


def is_on(message: Mapping[str, Any]) -> bool:
    """Whether a message may be trained: `train: false` or `weight: 0` switches it off."""
    return message.get("train") is not False and message.get("weight", 1) != 0


def trained_turns(messages: Sequence[Mapping[str, Any]], train_on: str = "assistant") -> list[int]:
    """The assistant messages to train, by index.

    Args:
        train_on: "assistant" or "all" for each that is on, "last" for the last of them.
    """
    turns = [i for i, message in enumerate(messages) if message.get("role") == "assistant" and is_on(message)]
    return turns[-1:] if train_on == "last" else turns


def render_rows(
    bound: BoundTemplate, conversation: Mapping[str, Any], train_on: str = "assistant", history: str = "expand"
) -> list[Rendered]:
    """The texts as which a conversation is trained, each with its spans; every trained turn is in exactly one.

    A turn is trained within a longer text if that text begins with exactly what generation sees and produces.

    Args:
        train_on: "assistant", "last" or "all", as `dataset.train_on`.
        history: what to do with a turn that is rendered differently in the whole conversation than in generation:
            "expand" gives it a text of its own, "allow" trains it as rendered, "refuse" refuses the conversation.

    Raises:
        Unlabelable: the template rejects the conversation or drops a message, or a turn cannot be found.
    """
    try:
        bound = bound.of_row(conversation)
        return _rows(Conversation(bound, conversation["messages"], conversation.get("tools")), train_on, history)
    except RenderError as error:
        raise Unlabelable(str(error)) from None


def _rows(conversation: Conversation, train_on: str, history: str) -> list[Rendered]:
    turns = trained_turns(conversation.messages, train_on)
    if not turns:
        raise Unlabelable("no assistant turn is trained")
    if train_on != "all" and (row := _at_once(conversation, turns)) is not None:
        return [row]
    whole = conversation.text()
    _check_nothing_dropped(conversation, whole)
    if train_on == "all":
        return [_everything(conversation, whole)]
    alone = {turn: _alone(conversation, turn, whole, history) for turn in turns}
    count = len(conversation.messages)
    last = alone.get(count - 1)
    row = Rendered(last.text if last else whole, upto=count, spliced=last is not None and last.spliced)
    left = _place(row, turns, alone)
    if left and history == "refuse":
        remedy = "dataset.history=expand gives it a row of its own"
        raise Unlabelable(f"a turn is rendered differently than in generation: message {left[0] + 1}; {remedy}")
    if left and history == "allow":
        _place_as_history(conversation, row, left)
        left = []
    rows = [row]
    while left:
        turn = left[-1]
        seen = alone[turn]
        assert seen is not None
        rows.append(Rendered(seen.text, upto=turn + 1, spliced=seen.spliced))
        left = _place(rows[-1], left, alone)
    return [row for row in rows if row.spans]


def _at_once(conversation: Conversation, turns: Sequence[int]) -> Rendered | None:
    """The row of a conversation whose template provably renders every turn as in generation.

    None if that is not proven, or if anything is unusual: the conversation is then rendered turn by turn.
    """
    steps = conversation.steps()
    if steps is None:
        return None
    prompt = conversation.bound.generation_prompt() or ""
    row = Rendered(steps.text, upto=len(conversation.messages))
    for index, message in enumerate(conversation.messages):
        start, end = steps.starts[index], steps.end_of(index)
        if index in turns:
            begin = start + len(prompt)
            if not index or not steps.text.startswith(prompt, start):
                return None
            try:
                stop = end_of(conversation.bound, steps.text, begin, message, index, end)
            except Unlabelable:
                stop = None
            if stop is None:
                return None
            row.add(index, trained_from(steps.text, begin, stop, message, index), stop)
        elif message.get("role") != "assistant":
            words = (message.get("content") or "").strip()
            if words and steps.text.find(words, start if index else 0, end) < 0:
                return None
    return row


def _alone(conversation: Conversation, turn: int, whole: str, history: str) -> Turn | None:
    """The turn as generation sees it; None if the template cannot render it so."""
    full = whole if turn + 1 == len(conversation.messages) else conversation.text(turn + 1)
    return as_generated(conversation, turn, full, splice=history == "expand")


def _place(row: Rendered, turns: Sequence[int], alone: Mapping[int, Turn | None]) -> list[int]:
    """Train each turn that this row renders as in generation; return the other turns."""
    left = []
    for turn in turns:
        seen = alone[turn]
        if seen is not None and row.text.startswith(seen.seen):
            row.add(turn, seen.start, seen.end)
        else:
            left.append(turn)
    return left


def _place_as_history(conversation: Conversation, row: Rendered, turns: Sequence[int]) -> None:
    """Train turns as a text renders them in its history."""
    marked = conversation.marked()
    if marked is None or not row.text.startswith(marked.text):
        raise Unlabelable("a turn that is rendered as history cannot be found: the contents cannot be marked")
    last = len(conversation.messages) - 1
    if last in turns and row.text == marked.text and conversation.bound.open_turn:
        row.text += stop_of(conversation.bound, conversation.messages[last])
    for turn in turns:
        row.add(turn, *as_history(conversation, turn, row.text, marked))


def _everything(conversation: Conversation, whole: str) -> Rendered:
    """The whole text as one span, except the messages that are switched off."""
    row = Rendered(whole, [(0, len(whole))], [len(conversation.messages) - 1], upto=len(conversation.messages))
    off = [index for index, message in enumerate(conversation.messages) if not is_on(message)]
    marked = conversation.marked()
    if marked is not None and marked.text == whole:
        row.others = [(start, end) for _, start, end in marked.regions]
    for index, message in enumerate(conversation.messages):
        if message.get("prefill") and is_on(message):
            seen = _alone(conversation, index, whole, "allow")
            known = seen is not None and whole.startswith(seen.text[: seen.start])
            start = seen.start if seen is not None and known else _off_turn(conversation, index, whole, marked)[0]
            row.masked.append((max(0, start - len(message["prefill"])), start))
    for index in off:
        if marked is None or marked.text != whole:
            raise Unlabelable(f"a message that is switched off cannot be found in the text: message {index + 1}")
        if conversation.messages[index].get("role") == "assistant":
            row.masked.append(_off_turn(conversation, index, whole, marked))
        else:
            row.masked += [(start, end) for found, start, end in marked.regions if found == index]
    return row


def _off_turn(conversation: Conversation, turn: int, whole: str, marked: Marked | None) -> tuple[int, int]:
    """The position of a switched-off assistant turn in the whole text."""
    seen = _alone(conversation, turn, whole, "allow")
    if seen is not None and whole.startswith(seen.seen):
        return seen.start, seen.end
    if marked is None:
        raise Unlabelable(f"a turn cannot be found in the text: message {turn + 1}")
    return as_history(conversation, turn, whole, marked)


def _check_nothing_dropped(conversation: Conversation, whole: str) -> None:
    """Refuse a conversation if one of its messages is missing from the text."""
    marked = conversation.marked()
    seen = marked.seen() if marked is not None and marked.text == whole else None
    for index, message in enumerate(conversation.messages):
        words = (message.get("content") or "").strip()
        if not words or message.get("role") == "assistant":
            continue
        if (index not in seen) if seen is not None else (words not in whole):
            raise Unlabelable(f"the chat template drops a message: message {index + 1}, role {message.get('role')}")
