"""The formats by name: which columns each needs, and how its row becomes a conversation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sft.data.formats.calls import calls_of, is_call
from sft.data.formats.errors import RowError
from sft.data.formats.fields import (
    SYSTEM,
    VARIABLES,
    add_system,
    as_bool,
    first_filled,
    history_of,
    row_tools,
    single_text,
    variables_of,
)
from sft.data.formats.marks import check_row_marks, is_row_mark, mark_messages
from sft.data.formats.messages import TOOLS, Message, check, messages_of
from sft.data.formats.parts import text_of
from sft.data.formats.turns import Consecutive, continue_answer, merge_assistant_turns
from sft.data.formats.values import EMPTY, is_blank, refuse_media

Conversation = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: what `dataset.sources.<name>.format` calls it.
        aliases: other words for it.
        needs: groups of columns; a row has this format when one column of each group is present and not empty.
        may: optional columns.
        alone: groups of columns that suffice where no other format fits.
        read: row -> messages, or the text itself for raw text.
    """

    name: str
    aliases: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...]
    may: tuple[str, ...]
    read: Callable[[Mapping[str, Any], Format], list[Message] | str]
    alone: tuple[tuple[str, ...], ...] = ()

    def fits(self, columns: Collection[str]) -> bool:
        """Whether these filled columns make a row of this format."""
        return all(any(name in columns for name in group) for group in self.needs)

    def fits_alone(self, columns: Collection[str]) -> bool:
        """Whether these filled columns make a row of this format where no other fits."""
        return bool(self.alone) and all(any(name in columns for name in group) for group in self.alone)

    @cached_property
    def columns(self) -> frozenset[str]:
        """Every column that the format reads."""
        return frozenset(name for group in self.needs for name in group) | frozenset(self.may)

    def reads(self, name: str, value: Any) -> bool:
        """Whether a column is read, given its value: a mark on the row is, a number of the same name is not."""
        return name in self.columns or is_row_mark(name, value) or (name == "label" and as_bool(value) is not None)

    def conversation(self, row: Mapping[str, Any], consecutive: Consecutive = "refuse") -> Conversation:
        """The row as a conversation. Raises RowError with the reason where it is none.

        Args:
            consecutive: as `dataset.consecutive`.
        """
        refuse_media(row, "row")
        check_row_marks(row)
        if as_bool(row.get("label")) is False:
            raise RowError("label is false", ": preference data marks the answer as unwanted; take such rows out")
        found = self.read(row, self)
        if isinstance(found, str):
            return {"text": found}
        tools = row_tools(row, found)
        mark_messages(found, row)
        add_system(found, row)
        check(found)
        conversation: Conversation = {"messages": merge_assistant_turns(found, consecutive)}
        if tools:
            conversation["tools"] = tools
        if variables := variables_of(row):
            conversation[VARIABLES] = variables
        return conversation


def _chat(row: Mapping[str, Any], form: Format) -> list[Message]:
    name = first_filled(row, form.needs[0])
    return messages_of(row[name], f"column '{name}'")


def _pair(row: Mapping[str, Any], form: Format) -> list[Message]:
    """A question and its answer, each text or messages, after the turns of `history`, which are trained as well.

    What comes before the answer in the question is not trained; an answer that it begins is continued.
    """
    question, answer = form.needs
    asked = _asked(row, question)
    told = _answer(row, answer)
    if asked[-1]["role"] == told[0]["role"] == "assistant" and not asked[-1].get("tool_calls"):
        told[0] = continue_answer(asked.pop(), told[0])
    return [*history_of(row.get("history")), *asked, *told]


def _instruction(row: Mapping[str, Any], form: Format) -> list[Message]:
    """Instruction and input on separate lines, after the turns of `history`, which are trained as well."""
    question, answer = form.needs
    told = _answer(row, answer)
    extra = single_text(row, ("input", "context"))
    if extra is not None and row.get("instruction") in EMPTY:
        name, text = "input", extra
    else:
        name = first_filled(row, question)
        text = text_of(row[name], f"column '{name}'")
        text = text if extra is None else f"{text}\n{extra}" if text else extra
    if is_blank(text):
        raise RowError("empty question", f" in column '{name}'")
    return [*history_of(row.get("history")), {"role": "user", "content": text}, *told]


def _text(row: Mapping[str, Any], form: Format) -> str:
    text = text_of(row[first_filled(row, form.needs[0])], "column 'text'")
    if is_blank(text):
        raise RowError("empty text", " in column 'text'")
    return text


def _asked(row: Mapping[str, Any], names: tuple[str, ...]) -> list[Message]:
    name = first_filled(row, names)
    value = row[name]
    if _is_messages(value):
        messages = messages_of(value, f"column '{name}'")
        for message in messages:
            if message["role"] == "assistant" and "weight" not in message:
                message.setdefault("train", False)
        return messages
    text = text_of(value, f"column '{name}'")
    if is_blank(text):
        raise RowError("empty question", f" in column '{name}'")
    return [{"role": "user", "content": text}]


def _answer(row: Mapping[str, Any], names: tuple[str, ...]) -> list[Message]:
    there = [name for name in names if row.get(name) not in (None, "")]
    if len(there) > 1 and any(row[name] != row[there[0]] for name in there[1:]):
        raise RowError(
            "contradicting columns", f": {' and '.join(there)} differ; name one by columns: {{{names[0]}: ...}}"
        )
    name = there[0] if there else first_filled(row, names)
    value = row[name]
    if is_call(value):
        return [{"role": "assistant", "content": "", "tool_calls": calls_of(value, f"column '{name}'")}]
    if isinstance(value, dict) and ("role" in value or "from" in value):
        value = [value]
    if _is_messages(value):
        told = messages_of(value, f"column '{name}'")
        if not any(message["role"] == "assistant" for message in told):
            raise RowError("no assistant turn", f" in column '{name}'")
        return told
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        remedy = f"; columns: {{{names[0]}: {name}.0}} takes the first"
        raise RowError("a list of texts where one answer belongs", f": column '{name}' has {len(value)}{remedy}")
    text = text_of(value, f"column '{name}'")
    if is_blank(text):
        raise RowError("empty answer", f" in column '{name}'")
    return [{"role": "assistant", "content": text}]


def _is_messages(value: Any) -> bool:
    """Whether a value is a list of messages rather than of text parts."""
    return isinstance(value, list) and any(
        isinstance(item, dict) and ("role" in item or "from" in item) for item in value
    )


_MAY = (*TOOLS, *SYSTEM, VARIABLES)
_ANSWER = ("output", "response", "completion", "answer")
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("messages", ("openai", "chatml", "chat"), (("messages",),), _MAY, _chat),
        Format("sharegpt", ("conversations",), (("conversations", "conversation"),), _MAY, _chat),
        Format(
            "instruction",
            ("alpaca",),
            (("instruction",), _ANSWER),
            ("input", "context", "history", *_MAY),
            _instruction,
            alone=(("input",), _ANSWER),
        ),
        Format(
            "prompt_completion",
            ("prompt_response",),
            (("prompt",), ("completion", "response", "output", "answer")),
            ("history", *_MAY),
            _pair,
        ),
        Format(
            "question_answer",
            ("qa",),
            (("question", "query"), ("answer", "response", "output", "completion")),
            ("history", *_MAY),
            _pair,
        ),
        Format("text", ("raw",), (("text",),), (), _text),
    )
}
ALIASES = {word: form.name for form in FORMATS.values() for word in (form.name, *form.aliases)}
