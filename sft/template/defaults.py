"""Defaults written into a chat template's text (BOS, the run's variables, its system message) so that it can be
saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sft.config.errors import UserError
from sft.template.bound import BoundTemplate
from sft.template.rendering.render import RenderError
from sft.template.tokens import adds_bos


def write_defaults(bound: BoundTemplate, tokenizer: Any) -> None:
    """Write BOS, the variables and the system message of the run into the template's text.

    A saved tokenizer then renders as the run did, also in plain transformers.

    Raises:
        UserError: the user's template does not write BOS exactly once, or a variable has an invalid name.
    """
    lines = []
    bos = getattr(tokenizer, "bos_token", None)
    if bos and adds_bos(tokenizer):
        bound.bos = bos
        _check_users_bos(bound, bos)
        if not _begins_with(bound, bos):
            lines.append("{% if true %}{{ bos_token }}{% endif %}")
            if bound.name == "own":
                bound.warnings.append(f"the chat template does not write {bos}, with which the tokenizer begins: added")
    begins = len(lines)
    for name, value in bound.kwargs.items():
        if not name.isidentifier():
            raise UserError(f"{name!r} is not the name of a variable", where="template.kwargs")
        lines.append(f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}")
    if bound.system is not None:
        content: Any = [{"type": "text", "text": bound.system}] if bound.style.parts else bound.system
        message = _literal({"role": "system", "content": content})
        lines.append(
            "{% if not messages or messages[0]['role'] != 'system' %}"
            f"{{% set messages = [{message}] + messages %}}{{% endif %}}"
        )
    # each line ends with a block, after which the newline is trimmed: nothing is added to the text
    bound.core = "".join(line + "\n" for line in lines[:begins]) + bound.text
    bound.text = "".join(line + "\n" for line in lines) + bound.text


def _check_users_bos(bound: BoundTemplate, bos: str) -> None:
    """Refuse a user's template that does not write BOS exactly once: any other template is corrected."""
    if bound.name != "file":
        return
    where = "template.path"
    if not _begins_with(bound, bos):
        what = f"the chat template does not write {bos}, with which the tokenizer begins every text"
        raise UserError(what, where=where, remedy="begin it with {{ bos_token }}")
    if _begins_with(bound, bos * 2, unknown=False):
        raise UserError(f"the chat template writes {bos} twice", where=where, remedy="write {{ bos_token }} once")


def _begins_with(bound: BoundTemplate, token: str, unknown: bool = True) -> bool:
    """Whether the template itself writes this token first; `unknown` where it cannot be rendered."""
    try:
        return bound.render({"messages": [{"role": "user", "content": "zquser"}]}).startswith(token)
    except RenderError:
        return unknown


def _literal(value: Any) -> str:
    """A plain value as a Jinja literal: JSON, except for None."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(key))}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
