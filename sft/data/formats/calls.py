"""Tool calls and tool lists in the forms that datasets use, converted to OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sft.data.formats.errors import RowError
from sft.data.formats.values import EMPTY, checked_json, kind_of, list_of, parse_json_text
from sft.data.report.notes import note

_NAMES = ("name", "tool", "tool_name")
ARGUMENTS = ("arguments", "parameters", "args", "tool_input", "input")
_MOST_ENCODINGS = 3  # of one call's arguments, beyond the one that OpenAI's format has


def is_call(value: Any) -> bool:
    """Whether an object is a tool call by its keys alone: {"tool": ..., "parameters": ...} or `tool_name`."""
    return isinstance(value, dict) and any(
        isinstance(name := value.get(key), str) and name.strip() for key in ("tool", "tool_name")
    )


def calls_of(value: Any, what: str) -> list[dict[str, Any]]:
    """One call or a list of them, also as JSON text, as [{"type": "function", "function": {"name", "arguments"}}].

    A call's id is kept. Raises RowError for a call without a name or with arguments that are not an object.
    """
    if isinstance(value, str):
        value = parse_json_text(value, what)
    if isinstance(value, Mapping):
        value = [value]
    calls = list_of(value, what)
    if not calls:
        raise RowError("empty tool call", f": the {what}")
    return [_call(call, what) for call in calls]


def tools_of(value: Any, what: str = "column 'tools'") -> list[dict[str, Any]]:
    """A row's tools, as a list, one object or JSON text, as [{"type": "function", "function": {...}}].

    Equal JSON texts give the same list object, so it must not be changed.

    Args:
        what: where they stand, for the reason.
    """
    if isinstance(value, str):
        return _parsed_tools(value, what)
    return _tools(value, what)


@lru_cache(maxsize=1024)
def _parsed_tools(text: str, what: str) -> list[dict[str, Any]]:
    return _tools(parse_json_text(text, what), what) if text.strip() else []


def _tools(value: Any, what: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        value = [value]
    return [_tool(tool, number) for number, tool in enumerate(list_of(value, what), 1)]


def _call(call: Any, what: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise RowError("not a tool call", f": the {what} is {kind_of(call)}")
    function = call["function"] if isinstance(call.get("function"), Mapping) else call
    name = _name(function, what)
    key = next((key for key in ARGUMENTS if key in function), None)
    arguments = function[key] if key else None
    for encoding in range(1 + _MOST_ENCODINGS):
        if not isinstance(arguments, str):
            break
        if encoding:
            note("decoded_arguments", name)
        arguments = parse_json_text(arguments, f"arguments of {name}") if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError("arguments are not an object", f" but {kind_of(arguments)}, in the call of {name}")
    checked_json(arguments, f"arguments of {name}")
    _note_unread(call, function, key)
    result: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if call.get("id") is not None:
        result["id"] = str(call["id"])
    return result


def _note_unread(call: Mapping[str, Any], function: Mapping[str, Any], arguments: str | None) -> None:
    """Note the keys of a call that are not kept, as its result."""
    named = next(key for key in _NAMES if function.get(key))
    read = {"id", "type", named, arguments}
    for part in [call] if call is function else [call, function]:
        for key, value in part.items():
            if key not in read and part.get(key) is not function and value not in EMPTY:
                note("unread_message_keys", f"tool_calls[].{key}")


def _tool(tool: Any, number: int) -> dict[str, Any]:
    what = f"tool {number}"
    if isinstance(tool, str):
        tool = parse_json_text(tool, what)
    if not isinstance(tool, Mapping):
        raise RowError("not a tool", f": {what} of tools is {kind_of(tool)}")
    function = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
    name = _name(function, what)
    rest = {
        key: item for key, item in function.items() if key not in _NAMES and not (function is tool and key == "type")
    }
    if isinstance(rest.get("parameters"), str):
        rest["parameters"] = parse_json_text(rest["parameters"], f"parameters of {name}")
    return {"type": "function", "function": checked_json({"name": name, **rest}, what)}


def _name(function: Mapping[str, Any], what: str) -> str:
    for key in _NAMES:
        name = function.get(key)
        if isinstance(name, str) and name.strip():
            return name
    raise RowError("no name", f" of a tool in the {what}")
