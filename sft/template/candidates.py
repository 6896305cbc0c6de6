"""Sources of chat templates, and the order in which they are tried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.config.paths import expanded
from sft.config.text import did_you_mean
from sft.template.families import Family, by_template
from sft.template.rendering.render import LONGEST
from sft.template.spec import Template

FILES = Path(__file__).parent / "files"
TOOL_TEMPLATE = "chatml"
# the template usually used with datasets of a format, for a model that has none
USUAL = {"instruction": "alpaca", "alpaca": "alpaca"}


@dataclass(frozen=True)
class Candidate:
    """A chat template that may be used.

    Args:
        name: "own", "file" or the packaged template's name.
        text: the Jinja template.
        what: its name in messages.
        family: the family whose stop tokens and markers it has.
    """

    name: str
    text: str
    what: str
    family: Family

    @property
    def ours(self) -> bool:
        """Whether the template is one of the packaged ones."""
        return self.name not in ("own", "file")


def candidates(template: Template, tokenizer: Any, family: Family, formats: Iterable[str]) -> Iterator[Candidate]:
    """The templates to try, in order: for "auto" the model's own, its family's or its data's usual one, ChatML.

    Raises:
        UserError: a template that does not exist or cannot be read.
    """
    if template.name == "file":
        yield Candidate("file", _users_text(template), "your chat template", family)
        return
    if template.path or template.text:
        raise UserError("template.path and template.text belong to template=file", where="template")
    if template.name != "auto":
        yield _packaged(template.name, f"the template {template.name}")
        return
    own = _own_text(tokenizer)
    if own:
        yield Candidate("own", own, "the model's own chat template", family)
    if family.template != TOOL_TEMPLATE:
        yield Candidate(family.template, packaged_text(family.template), f"the template of {family.name}", family)
    elif not own and len(found := set(formats)) == 1 and (usual := USUAL.get(found.pop())):
        yield _packaged(usual, f"the usual template of {usual} data")
    facts = family if family.template == TOOL_TEMPLATE else None
    yield _packaged(TOOL_TEMPLATE, "ChatML with tool calls", facts)


def packaged_templates() -> list[str]:
    """The names of the packaged templates."""
    return sorted(path.stem for path in FILES.glob("*.jinja"))


def packaged_text(name: str) -> str:
    """A packaged template's text.

    Raises:
        UserError: there is no template of this name; the message names the nearest.
    """
    known = packaged_templates()
    if name not in known:
        hint = did_you_mean(name, ["auto", "file", *known], "one of: auto, file, " + ", ".join(known))
        raise UserError(f"there is no chat template {name!r}", where="template.name", remedy=hint)
    return (FILES / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")


def _packaged(name: str, what: str, family: Family | None = None) -> Candidate:
    return Candidate(name, packaged_text(name), what, family or by_template(name) or Family(name, (), name))


def _users_text(template: Template) -> str:
    """The user's template, from the config or from a file."""
    if (template.path is None) == (template.text is None):
        remedy = "template.path=FILE, or template.text with the Jinja template itself"
        raise UserError("template=file needs one of template.path and template.text", where="template", remedy=remedy)
    if template.text is not None:
        return template.text
    path = expanded(template.path or "")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file", where="template.path")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise UserError(f"{path} has more than {LONGEST:,} characters", where="template.path")
        return text
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", where="template.path") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a UTF-8 text", where="template.path") from None


def _own_text(tokenizer: Any) -> str | None:
    """The tokenizer's chat template; of several named ones the one for tools, or else the default."""
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, Mapping):
        own = own.get("tool_use") or own.get("default") or next(iter(own.values()), None)
    if own and not isinstance(own, str):
        remedy = "template=chatml, or another named one"
        raise UserError("the tokenizer's chat template is not text", where="model.tokenizer", remedy=remedy)
    return own or None
