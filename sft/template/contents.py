"""Parts of message contents that a template or tokenizer would take for markup: control tokens and think blocks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from sft.config.text import shortened
from sft.template.bound import BoundTemplate
from sft.template.control import HIDE, TokenFinder, hidden, in_texts
from sft.template.rendering.messages import REASONING, parsed
from sft.template.rendering.render import RenderError
from sft.template.rendering.turns import THINK_CLOSE, THINK_OPEN, Unlabelable, opens_thinking

Note = tuple[str, str]  # kind and detail, see sft.data.report.notes
_THINK = (THINK_OPEN, THINK_CLOSE)


class Contents:
    """Prepares conversations for rendering so that nothing in their contents is taken for the template's own markup.

    Control tokens are those that the tokenizer flags as special, and those that end turns. Tags that a template writes
    and that the tokenizer knows without flagging them (`<think>`, `<tool_call>` of Qwen) occur in ordinary text and in
    answers: they are counted where any role but the assistant writes them.

    Args:
        bound: the chat template of the run.
        tokenizer: the run's tokenizer, with the template's tokens.
        control_tokens: "refuse" conversations that contain one, or treat it as "text".
    """

    def __init__(self, bound: BoundTemplate, tokenizer: Any, control_tokens: str = "refuse") -> None:
        added = tokenizer.added_tokens_decoder.values()
        ends = {*bound.stop_tokens, *([bound.tool_stop] if bound.tool_stop else [])}
        tokens = {token.content for token in added}
        self.control = ({token.content for token in added if token.special} | (ends & tokens)) - set(_THINK)
        self.tags = {token for token in tokens - self.control if token in bound.text and token.strip("<>[]|/ \n")}
        self.as_text = control_tokens == "text"
        self._control, self._all = TokenFinder(self.control), TokenFinder(self.control | self.tags)
        self._think = TokenFinder(_THINK)
        self._cuts, self._opened = _cuts_answers(bound), _opens_thinking(bound)

    def prepared(self, conversation: Mapping[str, Any], notes: list[Note] | None = None) -> Mapping[str, Any]:
        """The conversation to render: usually unchanged; typed control tokens are hidden in it where they are text.

        Args:
            notes: collects findings that are not errors.

        Raises:
            Unlabelable: a control token with control_tokens=refuse, two different reasonings of one answer, or a
                `</think>` at which the template would cut an answer.
        """
        notes = notes if notes is not None else []
        messages = [self._message(message, i, notes) for i, message in enumerate(conversation["messages"], 1)]
        tools = conversation.get("tools")
        if tools:
            _refuse_sign(tools, "the tool list")
            tools = in_texts(tools, partial(self._text, where="the tool list", role="tools", notes=notes))
        if tools is conversation.get("tools") and all(map(_same, messages, conversation["messages"])):
            return conversation
        return {**conversation, "messages": messages, "tools": tools}

    def _message(self, message: Mapping[str, Any], number: int, notes: list[Note]) -> Mapping[str, Any]:
        role = message["role"]
        where = f"message {number} ({role})"
        content = message.get("content")
        if isinstance(content, str):
            _refuse_sign(content, where)
            if role == "assistant" and THINK_CLOSE in content:
                message = self._reasoned(message, number, notes)
                content = message["content"]
            text = self._text(content, where, role, notes)
            if text is not content:
                message = {**message, "content": text}
        if len(message) == 2:
            return message
        more: dict[str, Any] = {}
        for key in (*REASONING, "tool_calls", "name"):
            value = message.get(key)
            if value:
                value = _decoded(value) if key == "tool_calls" else value
                _refuse_sign(value, where)
                place = f"{key} of {where}"
                more[key] = in_texts(value, partial(self._text, where=place, role=role, notes=notes))
        changed = {key: value for key, value in more.items() if value is not message[key]}
        return {**message, **changed} if changed else message

    def _text(self, text: str, where: str, role: str, notes: list[Note]) -> str:
        """A text whose typed control tokens are hidden, refused or noted, according to the policy."""
        finder = self._control if role == "assistant" else self._all
        spans = finder.spans(text)
        if not spans:
            return text
        if self.as_text:
            notes += [("control_tokens_as_text", text[start:end]) for start, end in spans]
            return hidden(text, finder)
        for start, end in spans:
            token = text[start:end]
            if token in self.control:
                raise Unlabelable(
                    f"a control token in the text: {token} in {where}; dataset.control_tokens=text makes it ordinary text"
                )
            notes.append(("tags_in_contents", f"{token} in {'a tool list' if role == 'tools' else _said_by(role)}"))
        return text

    def _reasoned(self, message: Mapping[str, Any], number: int, notes: list[Note]) -> Mapping[str, Any]:
        """An answer whose content has a `</think>`, with one reasoning and nothing at which a template would cut it."""
        content: str = message["content"]
        block, rest = think_block(content, self._opened)
        given = next((str(message[key]) for key in REASONING if message.get(key)), None)
        if block is not None and given is not None:
            if block.strip() != given.strip():
                raise Unlabelable(
                    f"an answer with two different reasonings: message {number}, {_short(block)} in its content and "
                    f"{_short(given)} beside it; keep one of them"
                )
            notes.append(("reasoning_twice", "a think block equal to the reasoning beside it"))
            return {**message, "content": self._literal(rest.lstrip("\n"), number, given, notes)}
        head = content[: len(content) - len(rest)]
        rest = self._literal(rest, number, block, notes)
        return message if head + rest == content else {**message, "content": head + rest}

    def _literal(self, text: str, number: int, block: str | None, notes: list[Note]) -> str:
        """An answer after its think block: another `</think>` is text, or refused where the template would cut the
        answer."""
        if THINK_CLOSE not in text:
            return text
        if self.as_text:
            spans = self._think.spans(text)
            notes += [("control_tokens_as_text", text[start:end]) for start, end in spans]
            return hidden(text, self._think)
        if self._cuts:
            why = "a second one" if block is not None else f"without a {THINK_OPEN} that begins the answer"
            raise Unlabelable(
                f"a {THINK_CLOSE} at which the chat template would cut the answer: message {number}, {why}; begin the "
                f"reasoning with {THINK_OPEN}, or keep the tag as ordinary text with dataset.control_tokens=text"
            )
        notes.append(("tags_in_contents", f"{THINK_CLOSE} in an answer"))
        return text


def think_block(content: str, opened: bool = False) -> tuple[str | None, str]:
    """The think block at the head of an answer, and the rest; (None, content) where it has none.

    Args:
        opened: whether the generation prompt writes the opening tag, so that an answer may begin inside the block.
    """
    head, closing, rest = content.partition(THINK_CLOSE)
    begin = head.lstrip()
    if not closing or not (begin.startswith(THINK_OPEN) or opened):
        return None, content
    return begin.removeprefix(THINK_OPEN), rest


def _cuts_answers(bound: BoundTemplate) -> bool:
    """Whether the template treats the text before a `</think>` in an answer as reasoning."""
    user, answer = {"role": "user", "content": "zquser"}, {"role": "assistant", "content": f"zqa {THINK_CLOSE} zqb"}
    try:
        return bound.render({"messages": [user, answer, user, answer]}).count(answer["content"]) < 2
    except RenderError:
        return False


def _opens_thinking(bound: BoundTemplate) -> bool:
    try:
        return opens_thinking(bound.render({"messages": [{"role": "user", "content": "zquser"}]}, True))
    except RenderError:
        return False


def _decoded(calls: Any) -> Any:
    """Calls whose arguments are JSON text with escapes, decoded: an escaped control token counts as well."""

    def one(call: Any) -> Any:
        function = call.get("function") if isinstance(call, Mapping) else None
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if function is None or not isinstance(arguments, str) or "\\u00" not in arguments:
            return call
        return {**call, "function": {**function, "arguments": parsed(arguments)}}

    decoded = [one(call) for call in calls] if isinstance(calls, list | tuple) else calls
    return calls if decoded == calls else decoded


def _refuse_sign(value: Any, where: str) -> None:
    """Refuse data that contains the character used to hide tokens."""

    def check(text: str) -> str:
        if HIDE in text:
            raise Unlabelable(f"the private-use character U+{ord(HIDE):04X}: in {where}")
        return text

    in_texts(value, check)


def _same(one: Any, other: Any) -> bool:
    return one is other


def _said_by(role: str) -> str:
    return {"user": "a user's message", "system": "a system message", "tool": "a tool's result"}.get(role, "an answer")


def _short(text: str, most: int = 40) -> str:
    return repr(shortened(" ".join(text.split()), most))
