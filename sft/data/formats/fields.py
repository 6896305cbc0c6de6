"""What a row holds beside its question and answer: system prompt, tools, earlier turns, variables, labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft.data.formats.calls import tools_of
from sft.data.formats.errors import RowError
from sft.data.formats.messages import TOOLS, Message, messages_of
from sft.data.formats.parts import text_of
from sft.data.formats.values import EMPTY, checked_json, kind_of, list_of, parse_json_text
from sft.data.report.notes import note

SYSTEM = ("system", "system_prompt")
VARIABLES = "chat_template_kwargs"  # of the chat template, for this row


def history_of(value: Any) -> list[Message]:
    """Earlier turns: pairs of texts, as lists or by keys, or messages."""
    if value in EMPTY:
        return []
    pairs = list_of(value, "column 'history'")
    if pairs and isinstance(pairs[0], dict):
        return messages_of(pairs, "column 'history'")
    messages: list[Message] = []
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError("history is not pairs", f": entry {number} is {kind_of(pair)}")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            messages.append({"role": role, "content": text_of(text, f"{role}'s part of history {number}")})
    return messages


def add_system(messages: list[Message], row: Mapping[str, Any]) -> None:
    """Put the row's own system prompt first."""
    system = single_text(row, SYSTEM)
    if system is None:
        return
    if messages[0]["role"] == "system":
        if messages[0]["content"] != system:
            raise RowError("contradicting columns", ": the system column and the system message differ")
        return
    messages.insert(0, {"role": "system", "content": system})


def row_tools(row: Mapping[str, Any], messages: list[Message]) -> list[dict[str, Any]]:
    """The tool list of a row, under any of its names, on the row or on its messages; all that are given must be
    equal."""
    given = {f"column '{name}'": row[name] for name in TOOLS if row.get(name) not in EMPTY}
    for number, message in enumerate(messages, 1):
        for name, value in message.pop("tools", {}).items():
            given[f"{name} of message {number}"] = value
    found = {what: tools for what, value in given.items() if (tools := tools_of(value, what))}
    lists = list(found.values())
    if any(tools != lists[0] for tools in lists[1:]):
        raise RowError("contradicting tools", f": {' and '.join(found)} differ")
    return lists[0] if lists else []


def variables_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The variables that a row sets for the chat template, without null values."""
    value = row.get(VARIABLES)
    if value in EMPTY:
        return {}
    value = parse_json_text(value, f"column '{VARIABLES}'") if isinstance(value, str) else value
    if not isinstance(value, dict):
        raise RowError(f"{VARIABLES} is not an object", f" but {kind_of(value)}")
    return {key: item for key, item in checked_json(value, f"column '{VARIABLES}'").items() if item not in EMPTY}


def as_bool(value: Any) -> bool | None:
    """true or false, also in the spellings of tables; None for any other value."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def single_text(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The text of the filled one of these optional columns. Raises RowError for two that differ."""
    texts = {
        name: text for name in names if row.get(name) not in EMPTY and (text := text_of(row[name], f"column '{name}'"))
    }
    if len(set(texts.values())) > 1:
        raise RowError("contradicting columns", f": {' and '.join(texts)} differ")
    return next(iter(texts.values()), None)


def first_filled(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The first of these columns that is filled, else the first that exists and is not null.

    Others with different content are noted as not read.
    """
    filled = [name for name in names if row.get(name) not in (None, "", [])]
    if filled:
        for other in filled[1:]:
            if row[other] != row[filled[0]]:
                note("unread_columns", other)
        return filled[0]
    for name in names:
        if name in row:
            if row[name] is None:
                raise RowError("null", f" in column '{name}'")
            return name
    raise RowError("missing column", f" '{names[0]}'; the row has {', '.join(map(str, row)) or 'none'}")
