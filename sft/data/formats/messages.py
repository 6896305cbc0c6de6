"""Lists of messages: OpenAI's role and content, ShareGPT's from and value, or pairs of a question and its answer."""

from __future__ import annotations

from typing import Any

from sft.config.text import did_you_mean
from sft.data.formats.assistant import CALLS, DETAILS, REASONING, assistant_message, keys_read
from sft.data.formats.errors import RowError
from sft.data.formats.marks import MARKS, is_trained, message_marks
from sft.data.formats.parts import is_text_parts, text_of
from sft.data.formats.values import EMPTY, as_json, is_blank, is_unicode, kind_of, list_of, refuse_media
from sft.data.report.notes import note

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
    "environment": "tool",
    "tool_response": "tool",
    "function_call": "call",
    "tool_call": "call",
}
TOOLS = ("tools", "functions", "tool_defs")  # keys of the tool list, on rows and on messages
_ASKED, _TOLD = ("human", "user", "input"), ("assistant", "gpt", "bot", "output")  # keys of a pair
_RESULT = ("name", "tool_name", "tool")  # keys of a result that name the tool
_ALWAYS_READ = frozenset({"role", "from", "content", "value", *TOOLS, *MARKS})
_READ = {"user": frozenset({"name"}), "system": frozenset({"name"}), "tool": frozenset({"tool_call_id", *_RESULT})}
_SPOKEN = frozenset({"user", "assistant", "system"})
Message = dict[str, Any]


def messages_of(value: Any, what: str) -> list[Message]:
    """A column's messages, each as {"role", "content", ...}; keys that are not read are noted.

    Tools that stand on a message are left there under `tools`, for the format to take.

    Raises:
        RowError: not a list, an unknown role, content that is not text, or a call that is not one.
    """
    raw = list_of(value, what)
    if not raw:
        raise RowError("empty", f": the {what} has no message")
    raw = [message for item in raw for message in _of_pair(item)]
    return [_plain(item) or _message(item, number) for number, item in enumerate(raw, 1)]


def _of_pair(item: Any) -> list[Any]:
    """The two messages of {"human": ..., "assistant": ...}, with a system message before; any other item itself."""
    if not isinstance(item, dict) or "role" in item or "from" in item:
        return [item]
    asked = next((key for key in _ASKED if key in item), None)
    told = next((key for key in _TOLD if key in item), None)
    if asked is None or told is None:
        return [item]
    rest = {key: value for key, value in item.items() if key not in (asked, told, "system")}
    messages = [{"role": "user", "content": item[asked]}, {"role": "assistant", "content": item[told], **rest}]
    return [{"role": "system", "content": item["system"]}, *messages] if item.get("system") else messages


def _plain(raw: Any) -> Message | None:
    """The common message with only a role and a text; None for any other."""
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
    content = _content(raw, where)
    refuse_media(raw, where)
    if role in ("assistant", "call"):
        message = assistant_message(raw, content, role, where)
        read = keys_read(raw, content, role)
    else:
        message = _tool(raw, content, where) if role == "tool" else _said(raw, role, content, where)
        read = _READ[role]
    message.update(message_marks(raw, message["role"], where))
    tools = {key: raw[key] for key in TOOLS if raw.get(key) not in EMPTY}
    if tools:
        message["tools"] = tools
    for key, value in raw.items():
        if key not in read and key not in _ALWAYS_READ and value not in EMPTY:
            note("unread_message_keys", str(key))
    return message


def _role(raw: dict[str, Any], where: str) -> str:
    role = raw["role"] if raw.get("role") is not None else raw.get("from")
    if isinstance(role, str):
        known = ROLES.get(role) or ROLES.get(role.strip().lower())
        if known:
            return known
        hint = did_you_mean(role.lower(), ROLES, "")
        raise RowError("unknown role", f" {role!r} in {where}" + f" ({hint})" * bool(hint))
    if role is None:
        raise RowError("no role", f" in {where}; its keys are {', '.join(map(str, raw)) or 'none'}")
    raise RowError("unknown role", f" in {where}: {kind_of(role)}")


def _content(raw: dict[str, Any], where: str) -> Any:
    """The content under either of its keys."""
    content, value = raw.get("content"), raw.get("value")
    if content in EMPTY:
        return content if value is None else value
    if value not in EMPTY and value != content:
        raise RowError("contradicting contents", f": content and value of {where} differ")
    return content


def _said(raw: dict[str, Any], role: str, content: Any, where: str) -> Message:
    """A user or system message."""
    _refuse_answers(raw, role, where)
    message = {"role": role, "content": text_of(content, f"content of {where}")}
    if isinstance(raw.get("name"), str):
        message["name"] = raw["name"]
    return message


def _tool(raw: dict[str, Any], content: Any, where: str) -> Message:
    """A tool's result; one that is not text is written as JSON."""
    _refuse_answers(raw, "tool", where)
    if isinstance(content, str) or is_text_parts(content):
        text = text_of(content, f"content of {where}")
    elif content is None:
        raise RowError("null", f" as the content of {where}")
    else:
        text = as_json(content, f"content of {where}")
    message: Message = {"role": "tool", "content": text}
    if raw.get("tool_call_id") is not None:
        message["tool_call_id"] = str(raw["tool_call_id"])
    for key in _RESULT:
        if isinstance(raw.get(key), str) and raw[key]:
            message["name"] = raw[key]
            break
    return message


def _refuse_answers(raw: dict[str, Any], role: str, where: str) -> None:
    """Raise RowError for calls or reasoning in a message that is not the assistant's: no template renders them."""
    for key in (*CALLS, *REASONING, DETAILS):
        if raw.get(key) not in EMPTY:
            raise RowError(f"{key} in a {role} message", f": {where}")


def check(messages: list[Message]) -> None:
    """Raise RowError for a conversation that is damaged or has nothing to learn from."""
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
