"""The config node `template`: which chat template renders the conversations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Template:
    """Which chat template is used, and with what.

    Args:
        name: "auto" (the model's own, else its family's, else ChatML), the name of a packaged template
            (`sft/template/files/<name>.jinja`, for instance "chatml", "llama3"), or "file" for one of the user's.
        path: with name "file": a file that holds a Jinja chat template.
        text: with name "file": the template itself, in place of `path`.
        system: a system message for the conversations that have none.
        kwargs: variables that the template is rendered with, for instance `{enable_thinking: false}`. They are
            written into the saved template as defaults, so that generation sees what training saw.
        date: the day (YYYY-MM-DD) that a template which prints the current date is rendered with; today if None.
    """

    name: str = "auto"
    path: str | None = None
    text: str | None = None
    system: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    date: str | None = None
