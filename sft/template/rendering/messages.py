"""The messages of a conversation as chat templates expect them, plain or with marks around the other roles' contents.

Marks are private-use characters, one pair for each message, put at the stripped edges of user, system and tool
contents, so that a template that trims does the same with and without them. After rendering they tell where each of
these contents went.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_OPEN, _CLOSE, _LIMIT = 0x100000, 0x108000, 0x7F00
MARKS = re.compile("[\U00100000-\U0010ffff]")
_OURS = frozenset({"train", "weight", "prefill"})
REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Style:
    """The form in which a template expects messages: found by rendering, see `probe.find_style`.

    Args:
        parts: contents as lists of `{"type": "text", "text": …}`, as templates of vision models do.
        null_content: None as the content of an empty turn that calls a tool.
        json_arguments: a call's arguments as JSON text.
        fold_reasoning: reasoning as a think block at the head of the content.
        short_ids: ids of calls as nine digits, whatever they are in the data.
    """

    parts: bool = False
    null_content: bool = False
    json_arguments: bool = False
    fold_reasoning: bool = False
    short_ids: bool = False


@dataclass(frozen=True)
class Marked:
    """A rendered text and where the marked contents stand in it.

    Args:
        text: the text without marks.
        regions: (message, start, end) by start: characters `[start, end)` are message's content.
    """

    text: str
    regions: tuple[tuple[int, int, int], ...]

    def before(self, message: int) -> int:
        """Where the last content of a message before this one ends; 0 if there is none."""
        return max((end for index, _, end in self.regions if index < message), default=0)

    def after(self, message: int) -> int:
        """Where the first content of a message after this one starts; the text's length if there is none."""
        return min((start for index, start, _ in self.regions if index > message), default=len(self.text))

    def seen(self) -> set[int]:
        """The messages whose content is in the text."""
        return {index for index, _, _ in self.regions}


class _OpenCall(NamedTuple):
    """A call without a result so far: its id in the data, the id it is rendered with, its function's name."""

    given: str | None
    id: str
    name: str


def plain_messages(
    messages: Sequence[Mapping[str, Any]], style: Style = Style(), system: str | None = None, marks: bool = False
) -> list[dict[str, Any]]:
    """The messages for a template: our own flags and empty fields removed, fields that templates look for filled in.

    A call without an id and a result without a name get them, in the order of the calls; reasoning is stored under
    each key that templates read. Contents of user, system and tool are marked with `marks`.

    Args:
        system: the system message for a conversation that does not begin with one.
    """
    shift = 0
    if system is not None and not (messages and messages[0].get("role") == "system"):
        messages, shift = [{"role": "system", "content": system}, *messages], 1
    open_calls: list[_OpenCall] = []
    out = []
    for index, message in enumerate(messages):
        plain = {key: value for key, value in message.items() if value is not None and key not in _OURS}
        content = message.get("content") or ""
        if plain.get("tool_calls"):
            given = [call.get("id") for call in plain["tool_calls"]]
            plain["tool_calls"] = _calls(plain["tool_calls"], index, style)
            open_calls = [
                _OpenCall(own, call["id"], call["function"].get("name", ""))
                for own, call in zip(given, plain["tool_calls"], strict=True)
            ]
        else:
            plain.pop("tool_calls", None)
        if plain["role"] == "tool":
            _name_result(plain, open_calls)
        reasoning = next((plain[key] for key in REASONING if plain.get(key)), None)
        if reasoning is not None and style.fold_reasoning:
            plain = {key: value for key, value in plain.items() if key not in REASONING}
            content = f"<think>\n{reasoning}\n</think>\n\n{content}"
        elif reasoning is not None:
            plain["reasoning_content"] = plain["thinking"] = reasoning
        if marks and plain["role"] != "assistant" and index >= shift:
            content = _mark(content, index - shift)
        if not content and style.null_content and "tool_calls" in plain:
            plain["content"] = None
        else:
            plain["content"] = [{"type": "text", "text": content}] if style.parts else content
        out.append(plain)
    return out


def reasoning_of(message: Mapping[str, Any]) -> str:
    """The reasoning of an assistant message: its own field, or else the think block at the start of its content."""
    given = next((message[key] for key in REASONING if message.get(key)), None)
    if given is not None:
        return str(given)
    head, closing, _ = (message.get("content") or "").rpartition("</think>")
    return head.partition("<think>")[2] if closing and "<think>" in head else head


def _calls(calls: Sequence[Mapping[str, Any]], index: int, style: Style) -> list[dict[str, Any]]:
    """Tool calls, each with an id and with arguments in the template's style."""
    out = []
    for place, call in enumerate(calls):
        function = dict(call.get("function") or {key: call[key] for key in ("name", "arguments") if key in call})
        arguments = function.get("arguments", {})
        if style.json_arguments and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        elif not style.json_arguments and isinstance(arguments, str):
            arguments = parsed(arguments)
        function["arguments"] = arguments
        # nine letters or digits: some templates refuse ids of another length
        made = f"{index % 100000:05d}{place % 10000:04d}"
        own = None if style.short_ids else call.get("id")
        out.append({"id": own or made, "type": call.get("type") or "function", "function": function})
    return out


def parsed(arguments: str) -> Any:
    """Arguments given as JSON text, parsed to a mapping; the text itself if it is not one."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _name_result(result: dict[str, Any], open_calls: list[_OpenCall]) -> None:
    """Give a tool result the id and the name of its call: the call it names, or else the first without a result."""
    known = result.get("tool_call_id")
    match = next((call for call in open_calls if call.given == known), None) if known else None
    if match is None and open_calls and not known:
        named = [call for call in open_calls if call.name == result.get("name")]
        match = (named or open_calls)[0]
    if match is not None:
        result["tool_call_id"] = match.id
        result.setdefault("name", match.name)
        if len(open_calls) > 1:
            open_calls.remove(match)


def _mark(content: str, index: int) -> str:
    """The content with this message's marks at its stripped edges; as it is where it is empty."""
    core = content.strip()
    if not content or index >= _LIMIT:
        return content
    start = content.index(core)
    end = start + len(core)
    return f"{content[:start]}{chr(_OPEN + index)}{core}{chr(_CLOSE + index)}{content[end:]}"


def read_marks(text: str) -> Marked | None:
    """Remove the marks from a rendered text; None if a pair is incomplete, so that the positions are unknown."""
    regions: list[tuple[int, int, int]] = []
    pieces: list[str] = []
    opened: dict[int, int] = {}
    last = length = 0
    for match in MARKS.finditer(text):
        pieces.append(text[last : match.start()])
        length += match.start() - last
        last = match.end()
        code = ord(match.group())
        if code < _CLOSE:
            opened[code - _OPEN] = length
        elif (start := opened.pop(code - _CLOSE, None)) is not None:
            regions.append((code - _CLOSE, start, length))
        else:
            return None
    pieces.append(text[last:])
    return None if opened else Marked("".join(pieces), tuple(sorted(regions, key=lambda region: region[1])))


def holds_marks(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the data itself contains characters used as marks."""
    return any(MARKS.search(message.get("content") or "") is not None for message in messages)
