"""A conversation with the template that renders it: its texts, its prompts, and where other roles' contents are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from sft.template.bound import BoundTemplate
from sft.template.rendering.messages import Marked, holds_marks, read_marks
from sft.template.rendering.render import RenderError, template_errors
from sft.template.rendering.stepwise import Steps


class Conversation:
    """Messages and tools with the template that renders them.

    Args:
        bound: the chat template.
        messages: any number of them; the texts below are those of the first ones.
        tools: tool signatures, or None.
    """

    def __init__(
        self,
        bound: BoundTemplate,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.bound, self.messages, self.tools = bound, messages, tools
        self.plain = bound.plain(messages)
        self._lead = len(self.plain) - len(messages)  # the run's system message

    @cached_property
    def _with_marks(self) -> list[dict[str, Any]] | None:
        return None if holds_marks(self.messages) else self.bound.plain(self.messages, marks=True)

    def text(self, upto: int | None = None) -> str:
        """The first `upto` messages as text; all of them if None. Raises RenderError."""
        return self.bound.draw(self._head(self.plain, upto), self.tools)

    def prompt(self, turn: int) -> str:
        """What generation sees before a turn. Raises RenderError."""
        return self.bound.draw(self._head(self.plain, turn), self.tools, True)

    def marked(self, upto: int | None = None, add_generation_prompt: bool = False) -> Marked | None:
        """The text with the positions of the other roles' contents; None if marks cannot tell them."""
        if self._with_marks is None:
            return None
        try:
            return read_marks(self.bound.draw(self._head(self._with_marks, upto), self.tools, add_generation_prompt))
        except RenderError:
            return None

    def steps(self) -> Steps | None:
        """The text with its message boundaries, if the template's source proves that it only grows."""
        stepped = self.bound.stepwise()
        if stepped is None or not self.messages or not stepped.covers(self.messages):
            return None
        with template_errors():
            found = stepped.render(self.plain, self.bound.context(self.tools))
        if found is None or self._lead == 0:
            return found
        return Steps(found.text, found.starts[self._lead :], found.end)

    def _head(self, plain: list[dict[str, Any]], upto: int | None) -> list[dict[str, Any]]:
        return plain if upto is None else plain[: upto + self._lead]
