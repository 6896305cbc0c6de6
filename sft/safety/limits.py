"""What a chat template may use up: a few seconds, and texts of a size that conversations have.

Jinja's sandbox keeps a template from Python's internals, not from `{% for %}` in `{% for %}`, or from a text that is
doubled forty times. A template comes with a model or a run from elsewhere, so whatever can repeat or grow (loops, calls,
filters, `+`, `~`, `*`, `%`, `**`, lists in lists) looks at a budget of the rendering; one that is used up ends the command.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2.sandbox import SecurityError

from sft.config.errors import UserError

SECONDS = 5.0  # of the thread's own time, so that a busy machine changes nothing; a long conversation takes 0.1
LARGEST = 1 << 26  # characters of a text, items of a list
LARGEST_SUM = 1 << 29  # of all that is made on the way
MOST_NESTED = 1 << 19  # values in a list of lists, each counted as often as it would be written
WIDEST = 10_000  # columns of `center`, bits of a power, digits of a width
_BETWEEN_LOOKS = 64  # steps between two looks at the clock
_WIDTH_IN_FORMAT = re.compile(r"\d{5,}|\{[^{}]*\{|%[^a-zA-Z%]*\*")


class EndlessTemplate(UserError):
    """A chat template that does not come to an end, or makes more text than there is memory for."""


class _Budget(threading.local):
    """What the rendering of this thread has used."""

    until: float | None = None
    steps: int = 0
    look: int = 0
    made: int = 0


_budget = _Budget()


@contextmanager
def limited() -> Iterator[None]:
    """One rendering's budget; a rendering inside of another has a share in it."""
    if _budget.until is not None:
        yield
        return
    _budget.until, _budget.steps, _budget.look, _budget.made = time.thread_time() + SECONDS, 0, 0, 0
    try:
        yield
    finally:
        _budget.until = None


def refusal(what: str) -> EndlessTemplate:
    """The error for a template that does too much."""
    return EndlessTemplate(
        f"the chat template {what}, and was stopped",
        where="template",
        remedy="template=chatml, or another template that you trust",
    )


def step(size: int = 0) -> None:
    """Count one step, more for what handles much at once. Raises EndlessTemplate where the time is up."""
    _budget.steps += 1 + (size >> 8)
    if _budget.steps < _budget.look:
        return
    _budget.look = _budget.steps + _BETWEEN_LOOKS
    if _budget.until is not None and time.thread_time() > _budget.until:
        raise refusal(f"does not end: it was at work for {SECONDS:g} s")


def grow(size: int) -> None:
    """Count what is made, before it is where that can be foreseen. Raises EndlessTemplate where it is too much."""
    step(size)
    _budget.made += size
    if size > LARGEST or _budget.made > LARGEST_SUM:
        raise refusal("makes more text than any conversation has")


def made(value: Any) -> Any:
    """The value, its size counted."""
    if isinstance(value, str | bytes | list | tuple | dict):
        grow(len(value))
    return value


def concat(pieces: Iterable[str]) -> str:
    """Pieces of a text as one, counted before they are put together."""
    pieces = list(pieces)
    grow(sum(map(len, pieces)))
    return "".join(pieces)


def measured(value: Any) -> Any:
    """A list or mapping, refused where writing it out would not end: what stands in it twice is written twice."""
    parts = value.values() if isinstance(value, Mapping) else value
    if any(isinstance(part, list | tuple | dict) or hasattr(part, "_Namespace__attrs") for part in parts):
        left, waiting = MOST_NESTED, [value]
        while waiting:
            inner = _inside(waiting.pop())
            left -= 1 + len(inner)
            step()
            if left < 0:
                raise refusal("nests lists in lists without end")
            waiting += [part for part in inner if isinstance(part, list | tuple | dict) or _is_namespace(part)]
    return value


def _is_namespace(value: Any) -> bool:
    return hasattr(value, "_Namespace__attrs")


def _inside(value: Any) -> Sequence[Any]:
    if _is_namespace(value):
        value = value._Namespace__attrs
    return list(value.values()) if isinstance(value, Mapping) else value


class Counted:
    """What a loop goes through, its steps counted; it has a length where its items have one."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            step()
            yield item

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]  # a TypeError is what Jinja goes by


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result would be too large, before it is made."""
    if operator == "*":
        for times, value in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(value, str | bytes | list | tuple):
                grow(len(value) * max(0, times))
        if isinstance(left, int) and isinstance(right, int):
            _check_number(left.bit_length() + right.bit_length())
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_number(left.bit_length() * abs(right))
    elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        grow(len(left) + len(right))
    elif operator == "%" and isinstance(left, str | bytes):
        check_format(left if isinstance(left, str) else left.decode("latin-1"))


def _check_number(bits: int) -> None:
    if bits > WIDEST:
        raise SecurityError("a chat template may not make a number of so many digits")


def check_format(text: str) -> None:
    """Refuse `'%100000d'` and widths that are arguments themselves."""
    if _WIDTH_IN_FORMAT.search(text):
        raise SecurityError("a chat template may not format to such a width")


def check_method(method: Any, arguments: Sequence[Any]) -> None:
    """Refuse a method of a text or a number whose result would be too large, before it is called."""
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(owner, str | bytes | int):
        return
    if name == "translate":
        raise SecurityError("a chat template may not use translate")
    if name == "replace" and len(arguments) >= 2:
        check_replace(owner, *arguments[:2])
    elif name == "join" and arguments:
        check_join(owner, arguments[0])
    elif name == "expandtabs":
        grow(len(owner) * max([8, *(a for a in arguments if isinstance(a, int))]))  # type: ignore[arg-type]
    elif name != "format" and any(isinstance(a, int) and a > LARGEST for a in arguments):
        raise refusal("makes more text than any conversation has")


def check_replace(text: Any, old: Any, new: Any) -> None:
    """Refuse a replacement that would make a text too large."""
    if isinstance(text, str | bytes) and isinstance(old, type(text)) and isinstance(new, type(text)):
        grow(len(text) + text.count(old) * len(new))  # type: ignore[arg-type]


def listed(items: Any) -> Any:
    """Items that are counted while they are made, as a list; a text stays one."""
    return items if isinstance(items, str) else list(Counted(items))


def check_join(separator: Any, items: Any) -> None:
    """Refuse to join what would be a text too large."""
    if isinstance(items, str | list | tuple | dict) and isinstance(separator, str | bytes):
        grow(sum(len(item) for item in items if isinstance(item, str | bytes)) + len(separator) * len(items))
