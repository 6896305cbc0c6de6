"""The formats by name: which columns make one, and how its row becomes a conversation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sft.data.formats.calls import calls_of, is_call, tools_of
from sft.data.formats.errors import RowError
from sft.data.formats.messages import Message, check, messages_of
from sft.data.formats.values import is_blank, kind_of, list_of, optional_text, refuse_media, text_of

Conversation = dict[str, Any]
SYSTEM = ("system", "system_prompt")
TOOLS = "tools"


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: what `dataset.sources.<name>.format` calls it.
        aliases: other words for it.
        needs: groups of columns; a row has this format when one column of each group is there and not empty.
        may: further columns that are used.
        read: row -> messages, or the text itself for raw text.
    """

    name: str
    aliases: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...]
    may: tuple[str, ...]
    read: Callable[[Mapping[str, Any], Format], list[Message] | str]

    def fits(self, columns: Collection[str]) -> bool:
        """Whether these columns, none of them empty, make a row of this format."""
        return all(any(name in columns for name in group) for group in self.needs)

    @cached_property
    def columns(self) -> frozenset[str]:
        """Every column that the format reads."""
        return frozenset(name for group in self.needs for name in group) | frozenset(self.may)

    def conversation(self, row: Mapping[str, Any]) -> Conversation:
        """The row as a conversation. Raises RowError with the reason where it is none."""
        refuse_media(row, "row")
        found = self.read(row, self)
        if isinstance(found, str):
            return {"text": found}
        _add_system(found, row)
        check(found)
        tools = tools_of(row.get(TOOLS)) if row.get(TOOLS) else None
        return {"messages": found, "tools": tools} if tools else {"messages": found}


def _chat(row: Mapping[str, Any], form: Format) -> list[Message]:
    name = _present(row, form.needs[0])
    return messages_of(row[name], f"column '{name}'")


def _pair(row: Mapping[str, Any], form: Format) -> list[Message]:
    """A question and its answer, each text or messages; what comes before the answer is never trained."""
    question, answer = form.needs
    asked = _asked(row, question)
    told = _answer(row, answer)
    return [*asked, *told]


def _instruction(row: Mapping[str, Any], form: Format) -> list[Message]:
    """Instruction and input on a line each, after the turns of `history`, which are trained as well."""
    question, answer = form.needs
    told = _answer(row, answer)
    name = _present(row, question)
    text = text_of(row[name], f"column '{name}'")
    extra = _one(row, ("input", "context"))
    if extra is not None:
        text = f"{text}\n{extra}" if text else extra
    if is_blank(text):
        raise RowError("empty question", f" in column '{name}'")
    return [*_history(row.get("history")), {"role": "user", "content": text}, *told]


def _text(row: Mapping[str, Any], form: Format) -> str:
    text = text_of(row[_present(row, form.needs[0])], "column 'text'")
    if is_blank(text):
        raise RowError("empty text", " in column 'text'")
    return text


def _asked(row: Mapping[str, Any], names: tuple[str, ...]) -> list[Message]:
    name = _present(row, names)
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
    name = there[0] if there else _present(row, names)
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
    text = text_of(value, f"column '{name}'")
    if is_blank(text):
        raise RowError("empty answer", f" in column '{name}'")
    return [{"role": "assistant", "content": text}]


def _is_messages(value: Any) -> bool:
    """Whether a value is a list of messages rather than of text parts."""
    return isinstance(value, list) and any(
        isinstance(item, dict) and ("role" in item or "from" in item) for item in value
    )


def _history(value: Any) -> list[Message]:
    if value is None or value == "" or value == []:
        return []
    messages: list[Message] = []
    for number, pair in enumerate(list_of(value, "column 'history'"), 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError("history is not pairs", f": entry {number} is {kind_of(pair)}")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            messages.append({"role": role, "content": text_of(text, f"{role}'s part of history {number}")})
    return messages


def _add_system(messages: list[Message], row: Mapping[str, Any]) -> None:
    """Puts the row's own system prompt first."""
    system = _one(row, SYSTEM)
    if system is None:
        return
    if messages[0]["role"] == "system":
        if messages[0]["content"] != system:
            raise RowError("contradicting columns", ": the system column and the system message differ")
        return
    messages.insert(0, {"role": "system", "content": system})


def _one(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The text of whichever of these optional columns is filled; two that differ contradict each other."""
    texts = {name: text for name in names if (text := optional_text(row.get(name), f"column '{name}'")) is not None}
    if len(set(texts.values())) > 1:
        raise RowError("contradicting columns", f": {' and '.join(texts)} differ")
    return next(iter(texts.values()), None)


def _present(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of these columns that is filled, else the first that is there and not null."""
    for name in names:
        if row.get(name) not in (None, "", []):
            return name
    for name in names:
        if name in row:
            if row[name] is None:
                raise RowError("null", f" in column '{name}'")
            return name
    raise RowError("missing column", f" '{names[0]}'; the row has {', '.join(map(str, row)) or 'none'}")


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("messages", ("openai", "chatml", "chat"), (("messages",),), (TOOLS, *SYSTEM), _chat),
        Format("sharegpt", ("conversations",), (("conversations", "conversation"),), (TOOLS, *SYSTEM), _chat),
        Format(
            "instruction",
            ("alpaca",),
            (("instruction",), ("output", "response", "completion", "answer")),
            ("input", "context", "history", TOOLS, *SYSTEM),
            _instruction,
        ),
        Format(
            "prompt_completion",
            ("prompt_response",),
            (("prompt",), ("completion", "response", "output", "answer")),
            (TOOLS, *SYSTEM),
            _pair,
        ),
        Format(
            "question_answer",
            ("qa",),
            (("question", "query"), ("answer", "response", "output", "completion")),
            (TOOLS, *SYSTEM),
            _pair,
        ),
        Format("text", ("raw",), (("text",),), (), _text),
    )
}
ALIASES = {word: form.name for form in FORMATS.values() for word in (form.name, *form.aliases)}
