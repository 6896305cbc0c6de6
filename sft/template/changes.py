"""What a chat template changes in message contents: many trim them, which breaks code and lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sft.template.bound import BoundTemplate
from sft.template.contents import think_block
from sft.template.rendering.render import RenderError
from sft.template.rendering.spans import Rendered

_WHAT = {"user": "users' messages", "system": "system messages", "tool": "tools' results", "assistant": "answers"}
_EDGE = "\n\n \t"


class Changes:
    """Finds message contents that appear changed in the rendered text.

    The inside of contents is checked elsewhere (a turn with a missing word is refused), which leaves whitespace at
    their edges. It is looked for in each trained answer; for the other roles one trial per role tells whether the
    template trims their contents.

    Args:
        bound: the chat template of the run.
    """

    def __init__(self, bound: BoundTemplate) -> None:
        self.trimmed = {role: _trims(bound, role) for role in _WHAT}

    def of(self, messages: Sequence[Mapping[str, Any]], rows: Sequence[Rendered]) -> list[str]:
        """The roles whose contents were changed, one entry each: `answers, trimmed`.

        Args:
            messages: of a conversation.
            rows: the rows rendered from it.
        """
        edged = [i for i, message in enumerate(messages) if _has_edges(message.get("content") or "")]
        if not edged:
            return []
        trained = {t: row.text[s:e] for row in rows for t, (s, e) in zip(row.turns, row.spans, strict=True)}
        return [f"{_WHAT[messages[i]['role']]}, trimmed" for i in edged if self._lost(messages[i], trained.get(i))]

    def _lost(self, message: Mapping[str, Any], span: str | None) -> bool:
        content = message["content"]
        if span is not None:
            block, rest = think_block(content)
            said = rest.lstrip("\n") if block is not None else content
            return said.removeprefix(message.get("prefill") or "") not in span
        left, right = self.trimmed.get(message["role"], (False, False))
        return (left and content[0].isspace()) or (right and content[-1].isspace())


def _has_edges(content: str) -> bool:
    return content[:1].isspace() or content[-1:].isspace()


def _trims(bound: BoundTemplate, role: str) -> tuple[bool, bool]:
    """Whether the template trims the left and the right edge of a role's contents."""

    def text(content: str) -> str:
        return bound.render({"messages": _around(role, content)})

    try:
        plain = text("zq")
        return text(f"{_EDGE}zq") == plain, text(f"zq{_EDGE}") == plain
    except RenderError:
        return False, False


def _around(role: str, content: str) -> list[dict[str, Any]]:
    """A conversation with one content of this role, followed by others."""
    user, answer = {"role": "user", "content": "zquser"}, {"role": "assistant", "content": "zqanswer"}
    call = {"type": "function", "function": {"name": "zqname", "arguments": {}}}
    said = {"role": role, "content": content}
    if role == "tool":
        return [user, {"role": "assistant", "content": "", "tool_calls": [call]}, said, answer]
    if role == "system":
        return [said, user, answer]
    return [said, answer, user, answer] if role == "user" else [user, said, user, answer]
