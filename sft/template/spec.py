"""The config node `template`: which chat template renders the conversations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Template:
    """The chat template and its settings.

    Args:
        name: "auto" (the model's own, else its family's, else ChatML), the name of a packaged template
            (`sft/template/files/<name>.jinja`, for instance "chatml", "llama3"), or "file" for the user's own.
        path: with name "file": a file with a Jinja chat template.
        text: with name "file": the template itself, in place of `path`.
        system: a system message for the conversations that have none.
        kwargs: variables that the template is rendered with, for instance `{enable_thinking: false}`. They are
            written into the saved template as defaults, so that generation sees what training saw.
        date: the date (YYYY-MM-DD) for a template that prints the current date; None is today.
    """

    name: str = "auto"
    path: str | None = None
    text: str | None = None
    system: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    date: str | None = None
