"""A chat template in Go's notation, for an Ollama Modelfile: derived and verified by rendering."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.template.rendering.render import RenderError

Render = Callable[[Mapping[str, Any], bool], str]
_SYSTEM, _USER, _ANSWER, _SECOND = "zqsystem", "zquser", "zqanswer", "zqsecond"


@dataclass(frozen=True)
class Pieces:
    """The texts around the contents of a chat, of which the templates of most families consist.

    Args:
        begin: before the user's first message, where there is no system prompt.
        system: before the system prompt; None where the template refuses one.
        after_system: between it and the user's first message.
        answered: between a user's message and an answer in the history.
        again: between an answer and the user's next message.
        prompt: after the last message: the generation prompt.
    """

    begin: str
    system: str | None
    after_system: str
    answered: str
    again: str
    prompt: str

    def text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A chat that ends with the user's turn, rendered from the pieces."""
        out, last = "", ""
        for index, message in enumerate(messages):
            role, content = message["role"], message["content"]
            if role == "system":
                out += f"{self.system}{content}"
            elif role == "user":
                before = {"": self.begin, "system": self.after_system}.get(last, self.again)
                out += before + content + (self.prompt if index == len(messages) - 1 else self.answered)
            else:
                out += content
            last = role
        return out

    def go(self) -> str:
        """The template in Go's notation."""
        system = (
            f'{{{{ if eq .Role "system" }}}}{self.system}{{{{ .Content }}}}{{{{ else '
            if self.system is not None
            else "{{ "
        )
        return (
            '{{- $before := "" }}{{- range $i, $_ := .Messages }}{{- $last := eq (len (slice $.Messages $i)) 1 -}}\n'
            f'{system}if eq .Role "user" }}}}'
            f'{{{{ if eq $before "" }}}}{self.begin}{{{{ else if eq $before "system" }}}}{self.after_system}'
            f"{{{{ else }}}}{self.again}{{{{ end }}}}"
            f"{{{{ .Content }}}}{{{{ if $last }}}}{self.prompt}{{{{ else }}}}{self.answered}{{{{ end }}}}"
            '{{ else if eq .Role "assistant" }}{{ .Content }}{{ end }}'
            "{{- $before = .Role }}{{- end }}"
        )


def find_pieces(render: Render, bos: str | None = None) -> Pieces | None:
    """The pieces of a chat template; None if it does more than put pieces around contents.

    Args:
        render: of a bound template: (conversation, add_generation_prompt) -> text.
        bos: removed from the beginning, because llama.cpp writes it itself.
    """
    try:
        pieces = _found(render, bos)
    except RenderError:
        return None
    if pieces is None or any("{{" in text or "}}" in text for text in vars(pieces).values() if text):
        return None
    chats = [_chat(*turns) for turns in ((_USER,), (_USER, _ANSWER, _SECOND), (_USER, _ANSWER, _SECOND, "a", "b"))]
    if pieces.system is not None:
        chats += [[{"role": "system", "content": _SYSTEM}, *chat] for chat in chats]
    same = all(pieces.text(chat) == _without(render({"messages": chat}, True), bos) for chat in chats)
    return pieces if same else None


def _found(render: Render, bos: str | None) -> Pieces | None:
    long = _chat(_USER, _ANSWER, _SECOND)
    plain = _between(_without(render({"messages": long}, True), bos), (_USER, _ANSWER, _SECOND))
    if plain is None:
        return None
    begin, answered, again, prompt = plain
    system, after = None, ""
    try:
        whole = [{"role": "system", "content": _SYSTEM}, *long]
        full = _between(_without(render({"messages": whole}, True), bos), (_SYSTEM, _USER, _ANSWER, _SECOND))
    except RenderError:
        full = None
    if full is not None:
        system, after = full[0], full[1]
    return Pieces(begin, system, after, answered, again, prompt)


def _chat(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def _without(text: str, bos: str | None) -> str:
    return text.removeprefix(bos) if bos else text


def _between(text: str, contents: Sequence[str]) -> list[str] | None:
    """The texts before, between and after contents; None if one does not occur exactly once, or not in order."""
    if any(text.count(content) != 1 for content in contents):
        return None
    places = [0, *(text.index(content) for content in contents), len(text)]
    if places != sorted(places):
        return None
    starts = [0, *(text.index(content) + len(content) for content in contents)]
    return [text[start:end] for start, end in zip(starts, places[1:], strict=True)]
