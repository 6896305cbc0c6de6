"""An assistant's message: its text, calls and reasoning, under the keys that datasets use for them."""

from __future__ import annotations

from typing import Any

from sft.data.formats.calls import ARGUMENTS, calls_of, is_call
from sft.data.formats.errors import RowError
from sft.data.formats.parts import reasoning_text, text_and_reasoning
from sft.data.formats.values import EMPTY, list_of, parse_json_text
from sft.data.report.notes import note

CALLS = ("tool_calls", "function_call", "function_calls")
REASONING = ("reasoning_content", "reasoning", "thinking")
DETAILS = "reasoning_details"  # OpenRouter's: a list of reasoning.text, reasoning.summary, reasoning.encrypted
_CALL_KEYS = frozenset({"id", "name", "tool", "tool_name", *ARGUMENTS})


def assistant_message(raw: dict[str, Any], content: Any, role: str, where: str) -> dict[str, Any]:
    """The message as {"role", "content", "tool_calls", "reasoning_content"}, the last two where there are any.

    Args:
        raw: the message as it stands.
        content: its content, under whichever key.
        role: "assistant", or "call" for a role that says that the content is a call.
        where: the message, for reasons.

    Raises:
        RowError: content, calls or reasoning that cannot be read, or are given twice and differ.
    """
    if raw.get("refusal") not in EMPTY:
        raise RowError("refusal is not read", f" in {where}; an answer stands in content")
    calls = _calls_of_role(raw, content, where) if role == "call" else _calls(raw, content, where)
    if role == "call" or (calls and (content is None or is_call(content))):
        content = ""
    text, thought = text_and_reasoning(content, f"content of {where}")
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = calls
    reasoning = _reasoning(raw, thought, where)
    if reasoning:
        message["reasoning_content"] = reasoning
    return message


def keys_read(raw: dict[str, Any], content: Any, role: str) -> frozenset[str]:
    """The keys of the message that assistant_message reads, beside its role and content."""
    own = frozenset({*CALLS, *REASONING, DETAILS, "refusal"})
    return own | _keys_of_call(raw) if _call_on_message(raw, content) or (role == "call" and _named(raw)) else own


def _calls(raw: dict[str, Any], content: Any, where: str) -> list[dict[str, Any]]:
    """The calls of an assistant message: a list under its key, or one call on the message or as its content."""
    given = {key: calls_of(raw[key], f"{key} of {where}") for key in CALLS if raw.get(key) not in EMPTY}
    if len(given) > 1 and any(calls != next(iter(given.values())) for calls in given.values()):
        raise RowError("contradicting calls", f": {' and '.join(given)} of {where} differ")
    if given:
        return next(iter(given.values()))
    if _call_on_message(raw, content):
        return calls_of({key: raw[key] for key in _keys_of_call(raw) if key in raw}, f"call in {where}")
    return calls_of(content, f"call in {where}") if is_call(content) else []


def _calls_of_role(raw: dict[str, Any], content: Any, where: str) -> list[dict[str, Any]]:
    """The calls of a `tool_call` message: its content, or a name on the message with the arguments beside or as content."""
    what = f"call in {where}"
    if _named(raw):
        if content in EMPTY:
            return calls_of({key: raw[key] for key in _keys_of_call(raw) if key in raw}, what)
        value = parse_json_text(content, what) if isinstance(content, str) else content
        if isinstance(value, dict) and not (
            is_call(value) or (_named(value) and any(key in value for key in ARGUMENTS))
        ):
            return calls_of({"name": raw["name"], "arguments": value, "id": raw.get("id")}, what)
    return calls_of(content, what)


def _call_on_message(raw: dict[str, Any], content: Any) -> bool:
    """Whether the message itself is a call; `name` alone is the speaker, with arguments it is the function."""
    return is_call(raw) or (content in EMPTY and _named(raw) and raw.get("arguments") is not None)


def _keys_of_call(raw: dict[str, Any]) -> frozenset[str]:
    """The keys of a call on a message; beside `tool`, `name` is the speaker."""
    return _CALL_KEYS - {"name"} if is_call(raw) else _CALL_KEYS


def _named(value: dict[str, Any]) -> bool:
    return isinstance(value.get("name"), str) and bool(value["name"].strip())


def _reasoning(raw: dict[str, Any], thought: str, where: str) -> str:
    """The reasoning, kept once however often it is given."""
    given = {key: reasoning_text(raw[key], f"{key} of {where}") for key in REASONING if raw.get(key) not in EMPTY}
    if thought:
        given["content"] = thought
    if raw.get(DETAILS) not in EMPTY:
        details = _details(raw[DETAILS], where)
        if details is not None:
            given[DETAILS] = details
        elif given:
            note("unread_message_keys", DETAILS)
        else:
            raise RowError("reasoning_details is not text", f" alone in {where}")
    texts = list(dict.fromkeys(text for text in given.values() if text))
    if len(texts) > 1:
        raise RowError("contradicting reasoning", f": {' and '.join(given)} of {where} differ")
    return texts[0] if texts else ""


def _details(value: Any, where: str) -> str | None:
    """The text of reasoning_details; None where it has summaries or encrypted parts, which are not the reasoning."""
    parts = list_of(value, f"{DETAILS} of {where}")
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        return None
    return "".join(part["text"] for part in parts)
