"""A chat template bound to a tokenizer, used by both training and generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sft.template.rendering.messages import Style, plain_messages
from sft.template.rendering.render import RenderError, day, render, template_errors, variables_of
from sft.template.rendering.stepwise import Stepwise, stepwise

_GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt"})  # by the code that renders


@dataclass
class BoundTemplate:
    """A chat template with everything that rendering needs; it can be pickled.

    Args:
        name: "own", "file", or the packaged template's name.
        text: the Jinja template, with the run's system message, variables and BOS written into it, so that a saved
            tokenizer renders as training did.
        reason: why this one was chosen, one sentence.
        family: the family's name.
        system: the system message of conversations that have none, where the run or the family sets one.
        kwargs: variables that the run sets, as `enable_thinking`.
        stop_tokens: tokens that end an assistant turn, the usual one first.
        tool_stop: the token that ends a turn which calls a tool, where it is a different one.
        open_turn: whether the template leaves the last turn without a stop token.
        variables: special tokens by name and kwargs, as the template sees them.
        style: the form in which the template expects messages.
        missing_tokens: control tokens that the tokenizer does not know as single tokens; the model must add them.
        bos: the token that each row must begin with; None where the tokenizer adds none.
        response_marker: the text right before an answer, for families where it is known.
        instruction_marker: the text right before a user's message.
        date: the date that a template which prints one was rendered with; None for the others.
        warnings: what the user should know.
        core: `text` without the run's system message and variables, which rendering passes in anyway.
    """

    name: str
    text: str
    reason: str
    family: str = "chatml"
    system: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    stop_tokens: list[str] = field(default_factory=list)
    tool_stop: str | None = None
    open_turn: bool = False
    variables: dict[str, Any] = field(default_factory=dict)
    style: Style = field(default_factory=Style)
    missing_tokens: list[str] = field(default_factory=list)
    bos: str | None = None
    response_marker: str | None = None
    instruction_marker: str | None = None
    date: str | None = None
    warnings: list[str] = field(default_factory=list)
    core: str = ""
    _prompt: str | None = field(default=None, init=False, repr=False, compare=False)

    def render(self, conversation: Mapping[str, Any], add_generation_prompt: bool = False) -> str:
        """The conversation's text, as generation sees it with `add_generation_prompt`.

        Raises:
            RenderError: the template rejects the conversation or fails on it; the message says why.
        """
        bound = self.of_row(conversation)
        return bound.draw(bound.plain(conversation["messages"]), conversation.get("tools"), add_generation_prompt)

    def of_row(self, conversation: Mapping[str, Any]) -> BoundTemplate:
        """The template with the variables that a conversation sets in its own `chat_template_kwargs`.

        Raises:
            RenderError: a variable that the template does not read and that would have no effect.
        """
        variables = conversation.get("chat_template_kwargs")
        if not variables:
            return self
        unread = [name for name in variables if name in _GIVEN or name not in variables_of(self.core or self.text)]
        if unread:
            raise RenderError(f"chat_template_kwargs sets {', '.join(unread)}, which the chat template does not read")
        return replace(self, kwargs={**self.kwargs, **variables}, variables={**self.variables, **variables})

    def plain(self, messages: Sequence[Mapping[str, Any]], marks: bool = False) -> list[dict[str, Any]]:
        """The messages as this template expects them, the run's system message included; see `plain_messages`."""
        return plain_messages(messages, self.style, self.system, marks)

    def draw(
        self,
        plain: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        *,
        generation_marks: bool = False,
    ) -> str:
        """Messages returned by `plain` as text; with `generation_marks` around the contents of `{% generation %}`
        blocks."""
        context = self.context(tools)
        return render(self.text, plain, context, add_generation_prompt, generation_marks=generation_marks)

    def context(self, tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
        """The variables that the template sees besides the messages."""
        return {**self.variables, **day(self.date), "tools": tools or None, "documents": None}

    def stepwise(self) -> Stepwise | None:
        """The template with its message boundaries marked, if its source proves that its text only grows."""
        return stepwise(self.core or self.text)

    def generation_prompt(self) -> str | None:
        """The text that the template writes before every answer, if its source proves that it is always the same."""
        if self._prompt is None and (steps := self.stepwise()) is not None:
            with template_errors():
                self._prompt = steps.generation_prompt(self.context(None))
        return self._prompt
