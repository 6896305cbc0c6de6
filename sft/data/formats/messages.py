"""Lists of messages: OpenAI's role and content, ShareGPT's from and value."""

from __future__ import annotations

import difflib
from typing import Any

from sft.data.formats.calls import calls_of, is_call
from sft.data.formats.errors import RowError
from sft.data.formats.values import as_json, is_blank, is_unicode, kind_of, list_of, refuse_media, text_of

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_call": "call",
    "tool_call": "call",
}
_REASONING = ("reasoning_content", "reasoning", "thinking")
_SPOKEN = frozenset({"user", "assistant", "system"})
Message = dict[str, Any]


def messages_of(value: Any, what: str) -> list[Message]:
    """A column's messages, each as {"role", "content", ...}; unknown keys are left out.

    Raises:
        RowError: no list, an unknown role, content that is no text, a call that is none.
    """
    raw = list_of(value, what)
    if not raw:
        raise RowError("empty", f": the {what} has no message")
    return [_plain(item) or _message(item, number) for number, item in enumerate(raw, 1)]


def _plain(raw: Any) -> Message | None:
    """The message that most are: a role and a text, nothing to look into. None for any other."""
    if type(raw) is not dict or len(raw) != 2:
        return None
    role, content = raw.get("role") or raw.get("from"), raw.get("content") or raw.get("value")
    if type(role) is not str or type(content) is not str or "\0" in content:
        return None
    if not content.isascii() and not is_unicode(content):
        return None
    known = ROLES.get(role)
    return {"role": known, "content": content} if known in _SPOKEN else None


def _message(raw: Any, number: int) -> Message:
    where = f"message {number}"
    if not isinstance(raw, dict):
        raise RowError("not a message", f": {where} is {kind_of(raw)}")
    role = _role(raw, where)
    content = raw["content"] if "content" in raw else raw.get("value")
    refuse_media(raw, where)
    if role == "call":
        message: Message = {"role": "assistant", "content": "", "tool_calls": calls_of(content, f"call in {where}")}
    elif role == "assistant":
        message = _assistant(raw, content, where)
    elif role == "tool":
        message = _tool(raw, content, where)
    else:
        message = {"role": role, "content": text_of(content, f"content of {where}")}
        if isinstance(raw.get("name"), str):
            message["name"] = raw["name"]
    message.update(_flags(raw, where))
    return message


def _role(raw: dict[str, Any], where: str) -> str:
    role = raw["role"] if "role" in raw else raw.get("from")
    if isinstance(role, str):
        known = ROLES.get(role) or ROLES.get(role.strip().lower())
        if known:
            return known
        near = difflib.get_close_matches(role.lower(), ROLES, n=1)
        raise RowError("unknown role", f" {role!r} in {where}" + (f" (did you mean {near[0]}?)" if near else ""))
    if role is None:
        raise RowError("no role", f" in {where}; its keys are {', '.join(map(str, raw)) or 'none'}")
    raise RowError("unknown role", f" in {where}: {kind_of(role)}")


def _assistant(raw: dict[str, Any], content: Any, where: str) -> Message:
    calls = _calls(raw, content, where)
    if calls and (content is None or is_call(content)):
        content = ""
    message: Message = {"role": "assistant", "content": text_of(content, f"content of {where}")}
    if calls:
        message["tool_calls"] = calls
    for key in _REASONING:
        if isinstance(raw.get(key), str) and raw[key]:
            message["reasoning_content"] = text_of(raw[key], f"{key} of {where}")
            break
    return message


def _calls(raw: dict[str, Any], content: Any, where: str) -> list[dict[str, Any]]:
    """The calls an assistant makes: tool_calls, OpenAI's older function_call, or {"tool", "parameters"}."""
    for key in ("tool_calls", "function_call"):
        if raw.get(key) not in (None, "", [], {}):
            return calls_of(raw[key], f"{key} of {where}")
    if is_call(raw):
        return calls_of({key: item for key, item in raw.items() if key != "name"}, f"call in {where}")
    return calls_of(content, f"call in {where}") if is_call(content) else []


def _tool(raw: dict[str, Any], content: Any, where: str) -> Message:
    if isinstance(content, str) or _is_parts(content):
        text = text_of(content, f"content of {where}")
    elif content is None:
        raise RowError("null", f" as the content of {where}")
    else:
        text = as_json(content, f"content of {where}")
    message: Message = {"role": "tool", "content": text}
    if raw.get("tool_call_id") is not None:
        message["tool_call_id"] = str(raw["tool_call_id"])
    for key in ("name", "tool_name", "tool"):
        if isinstance(raw.get(key), str) and raw[key]:
            message["name"] = raw[key]
            break
    return message


def _is_parts(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and all(isinstance(p, dict) and "type" in p for p in content)


def _flags(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """`train` (true or false) and `weight` (0 or 1); both say whether a turn is trained."""
    flags: dict[str, Any] = {}
    train, weight = raw.get("train"), raw.get("weight")
    if train is not None:
        if not isinstance(train, bool):
            raise RowError("train is not true or false", f" but {train!r} in {where}")
        flags["train"] = train
    if weight is not None:
        if isinstance(weight, bool) or weight not in (0, 1):
            raise RowError("weight is not 0 or 1", f" but {weight!r} in {where}")
        flags["weight"] = int(weight)
    if len(flags) == 2 and flags["train"] != bool(flags["weight"]):
        raise RowError("train and weight contradict each other", f" in {where}")
    return flags


def is_trained(message: Message) -> bool:
    """Whether an assistant message's own flags let it be trained."""
    return bool(message.get("train", True)) and bool(message.get("weight", 1))


def check(messages: list[Message]) -> None:
    """Raise RowError for a conversation that nothing could be learned from, or that is damaged."""
    answered = trained = False
    made: set[str] = set()  # ids of the calls so far, where calls have ids
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if role == "assistant":
            answered = True
            learned = len(message) == 2 or is_trained(message)
            trained = trained or learned
            calls = message.get("tool_calls")
            if calls:
                made.update(call["id"] for call in calls if "id" in call)
            elif learned and is_blank(message["content"]):
                raise RowError("empty answer", f" in message {number}")
        elif role == "user":
            if is_blank(message["content"]):
                raise RowError("empty user turn", f" in message {number}")
        elif made and message.get("tool_call_id", next(iter(made))) not in made:
            raise RowError("a result without its call", f": {message['tool_call_id']!r} in message {number}")
    if not answered:
        raise RowError("no assistant turn")
    if messages[-1]["role"] != "assistant":
        raise RowError("no answer at the end", f": the last message is the {messages[-1]['role']}'s")
    if not trained:
        raise RowError("no turn is trained", ": train or weight leaves out every answer")
