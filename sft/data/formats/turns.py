"""One turn per answer: consecutive assistant messages, and answers that the prompt begins.

A turn ends only where the model would stop: not before calls that follow a text or another call before any result, and
not before the rest of a continued answer. Two texts in a row are two answers, the second without a prompt; chat
templates refuse them, join them or train both, so one policy decides for all.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

from sft.data.formats.errors import RowError
from sft.data.formats.marks import is_trained
from sft.data.formats.values import is_blank
from sft.data.report.notes import note

Consecutive = Literal["refuse", "merge"]  # `dataset.consecutive`
BETWEEN = "\n"  # separator of two merged texts
Message = dict[str, Any]


def merge_assistant_turns(messages: list[Message], consecutive: Consecutive = "refuse") -> list[Message]:
    """The messages, with each assistant turn merged into one message.

    A message of calls alone joins the assistant's message before it; a text does with consecutive="merge".

    Raises:
        RowError: two texts in a row with "refuse", or messages that no template can render as one turn.
    """
    assistants = [message["role"] == "assistant" for message in messages]
    if not any(one and other for one, other in itertools.pairwise(assistants)):
        return messages
    turns: list[Message] = []
    for number, message in enumerate(messages, 1):
        if turns and turns[-1]["role"] == message["role"] == "assistant":
            turns[-1] = _one_turn(turns[-1], message, number, consecutive)
        else:
            turns.append(message)
    return turns


def continue_answer(begun: Message, rest: Message) -> Message:
    """An answer that the prompt begins and the completion continues, letter for letter.

    Its `prefill` is the text that the prompt holds, which is not trained; without it all is.
    """
    if begun.get("reasoning_content"):
        raise RowError("reasoning in an answer that the prompt begins", ": put it into the completion")
    if rest.get("reasoning_content") and begun["content"]:
        raise RowError("reasoning after the beginning of an answer", ": the completion continues the prompt's answer")
    if is_blank(rest["content"]) and not rest.get("tool_calls"):
        raise RowError("empty answer", " in the completion")
    if is_trained(begun) and not is_trained(rest):
        raise RowError(
            "a turn is left out in part", ": the prompt's beginning of the answer is to be trained, not its end"
        )
    note("merged_messages", "an answer that the prompt begins")
    start = begun["content"]
    kept = {key: value for key, value in begun.items() if key not in ("train", "weight")}
    whole = {**kept, **rest, "content": start + rest["content"]}
    if start and is_trained(rest) and not is_trained(begun):
        whole["prefill"] = start
    return whole


def _one_turn(first: Message, second: Message, number: int, consecutive: Consecutive) -> Message:
    """Two messages of the assistant as one. `number` is the second's."""
    which = f": messages {number - 1} and {number}"
    says = not is_blank(second["content"]) or second.get("reasoning_content")
    if says and first.get("tool_calls"):
        raise RowError("an assistant message after a call without its result", which)
    if says and consecutive == "refuse":
        raise RowError("two assistant messages in a row", f"{which}; dataset.consecutive=merge makes them one turn")
    note("merged_messages", "assistant messages in a row" if says else "calls of one turn")
    turn = {**first, **{key: value for key, value in second.items() if key not in ("train", "weight")}}
    texts = [each["content"] for each in (first, second) if not is_blank(each["content"])]
    turn["content"] = BETWEEN.join(texts)
    if second.get("tool_calls"):
        turn["tool_calls"] = [*first.get("tool_calls", []), *second["tool_calls"]]
    _merge_reasoning(turn, first, second, which)
    _merge_marks(turn, first, second, which)
    return turn


def _merge_reasoning(turn: Message, first: Message, second: Message, which: str) -> None:
    thoughts = [each["reasoning_content"] for each in (first, second) if each.get("reasoning_content")]
    if second.get("reasoning_content") and not is_blank(first["content"]):
        raise RowError("reasoning after a text of the same turn", which)
    if thoughts:
        turn["reasoning_content"] = BETWEEN.join(thoughts)


def _merge_marks(turn: Message, first: Message, second: Message, which: str) -> None:
    """A turn is trained to its end or not at all; only its beginning may be left out, as a prefill is."""
    before, after = is_trained(first), is_trained(second)
    if before == after:
        return
    if before or first.get("tool_calls") or first.get("reasoning_content"):
        raise RowError("a turn is left out in part", f"{which} are one turn, marked differently")
    turn.pop("train", None)
    turn.pop("weight", None)
    if not is_blank(first["content"]):
        turn["prefill"] = first["content"] + ("" if is_blank(second["content"]) else BETWEEN)
