"""Render a chat template to text, in a sandbox, as transformers' `apply_chat_template` would.

The environment has what chat templates rely on: trimmed blocks, loop controls, `raise_exception`, `strftime_now`, a
`tojson` that does not escape, and the `{% generation %}` block, whose edges can be marked in the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date as Date
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.meta
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import SecurityError

from sft.config.errors import UserError
from sft.safety.limits import limited
from sft.safety.sandbox import Sandbox

GENERATION_OPEN, GENERATION_CLOSE = "\U0010fff0", "\U0010fff1"
LONGEST = 1 << 20  # characters of a template; the longest of any known model has 20,000
_ASKS_FOR_GENERATION = "sft_generation_marks"


class RenderError(ValueError):
    """A chat template rejects a conversation, or fails on it; the message is the template's own reason."""


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}`: the answer's text, enclosed in two marks if requested."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        asked = jinja2.nodes.ContextReference()
        return jinja2.nodes.CallBlock(self.call_method("_edges", [asked]), [], [], body).set_lineno(line)

    def _edges(self, context: jinja2.runtime.Context, caller: jinja2.runtime.Macro) -> str:
        text = caller()
        return f"{GENERATION_OPEN}{text}{GENERATION_CLOSE}" if context.get(_ASKS_FOR_GENERATION) else text


class _Dict:
    """`dict(...)` and `dict.fromkeys(...)` for templates, without the attributes of the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """A namespace whose attributes cannot begin with an underscore: a template has no use for Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template may not set the attribute {name!r}")


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=1)
def environment() -> Sandbox:
    """The sandbox that chat templates render in, with what transformers gives them."""
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    environment.limit_filters()
    return environment


@lru_cache(maxsize=256)
def compiled(text: str) -> jinja2.Template:
    """The template of this text, compiled once per process.

    Raises:
        RenderError: the text is not a Jinja template.
    """
    if len(text) > LONGEST:
        raise RenderError(f"the chat template has {len(text):,} characters, more than {LONGEST:,}")
    try:
        with limited():  # constant expressions are evaluated now
            return environment().from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise RenderError(f"the chat template is not valid Jinja, line {error.lineno}: {error.message}") from None
    except (RecursionError, MemoryError, SyntaxError):
        raise RenderError("the chat template is not valid Jinja: nested too deeply") from None
    except (ValueError, OverflowError, TypeError, SecurityError) as error:
        raise RenderError(f"the chat template is not valid Jinja: {error}") from None


@lru_cache(maxsize=256)
def variables_of(text: str) -> frozenset[str]:
    """The variables that a template reads and does not set itself. Raises RenderError where it is not a template."""
    compiled(text)
    return frozenset(jinja2.meta.find_undeclared_variables(environment().parse(text)))


def day(date: str | None) -> dict[str, Any]:
    """The variable that makes `strftime_now` return this date (YYYY-MM-DD); {} for None, which is today."""
    return {} if date is None else {"strftime_now": Date.fromisoformat(date).strftime}


def render(
    text: str,
    messages: Sequence[Mapping[str, Any]],
    context: Mapping[str, Any],
    add_generation_prompt: bool = False,
    *,
    generation_marks: bool = False,
) -> str:
    """The text of a conversation.

    Args:
        text: the chat template.
        messages: plain dicts, as the template expects them (see `messages.plain_messages`).
        context: the template's other variables: special tokens, `tools`, `enable_thinking`.
        add_generation_prompt: whether the header of the next answer follows.
        generation_marks: put GENERATION_OPEN and GENERATION_CLOSE around what `{% generation %}` blocks hold.

    Raises:
        RenderError: the template raised, or failed on these messages.
        EndlessTemplate: it did not terminate, or produced more text than fits in memory.
    """
    variables = {**context, "messages": messages, "add_generation_prompt": add_generation_prompt}
    if generation_marks:
        variables[_ASKS_FOR_GENERATION] = True
    template = compiled(text)
    with template_errors(), limited():
        return template.render(variables)


@contextmanager
def template_errors() -> Iterator[None]:
    """Turn anything that a template raises into a RenderError: it is third-party code, and the error is about its
    input.

    A template that had to be stopped ends the command: the next conversation would take as long.
    """
    try:
        yield
    except UserError:
        raise
    except jinja2.UndefinedError as error:
        raise RenderError(f"the chat template fails: {error}") from None
    except jinja2.TemplateError as error:
        raise RenderError(f"the chat template refuses it: {error}") from None
    except Exception as error:
        raise RenderError(f"the chat template fails: {type(error).__name__}: {error}") from None
