"""Resource limits of a chat template: a few seconds, and texts of the size of conversations.

Jinja's sandbox keeps a template from Python's internals, but not from nested loops, or from doubling a text forty
times. Templates come with untrusted models and runs, so whatever can repeat or grow (loops, calls, filters, `+`, `~`,
`*`, `%`, `**`, nested lists) is charged to a budget of the rendering; when it is used up, the command ends.
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

SECONDS = 5.0  # of thread CPU time, so that a busy machine makes no difference; a long conversation takes 0.1
LARGEST = 1 << 26  # characters of a text, items of a list
LARGEST_SUM = 1 << 29  # total over a rendering
MOST_NESTED = 1 << 19  # values in nested lists, each counted as often as it would be written
WIDEST = 10_000  # columns of `center`, bits of a power, digits of a width
_BETWEEN_LOOKS = 64  # steps between two checks of the clock
_WIDTH_IN_FORMAT = re.compile(r"\d{5,}|\{[^{}]*\{|%[^a-zA-Z%]*\*")


class EndlessTemplate(UserError):
    """A chat template that does not terminate, or produces too much text."""


class _Budget(threading.local):
    """The resources used by this thread's rendering."""

    until: float | None = None
    steps: int = 0
    look: int = 0
    made: int = 0


_budget = _Budget()


@contextmanager
def limited() -> Iterator[None]:
    """The budget of one rendering; a nested rendering shares it."""
    if _budget.until is not None:
        yield
        return
    _budget.until, _budget.steps, _budget.next_look, _budget.made = time.thread_time() + SECONDS, 0, 0, 0
    try:
        yield
    finally:
        _budget.until = None


def refusal(what: str) -> EndlessTemplate:
    """The error for a template that exceeds a limit."""
    return EndlessTemplate(
        f"the chat template {what}, and was stopped",
        where="template",
        remedy="template=chatml, or another template that you trust",
    )


def count_step(size: int = 0) -> None:
    """Count one step, more for large values. Raises EndlessTemplate when the time is up."""
    _budget.steps += 1 + (size >> 8)
    if _budget.steps < _budget.next_look:
        return
    _budget.next_look = _budget.steps + _BETWEEN_LOOKS
    if _budget.until is not None and time.thread_time() > _budget.until:
        raise refusal(f"does not terminate: it has run for {SECONDS:g} s")


def count_size(size: int) -> None:
    """Count the size of a value, beforehand where possible. Raises EndlessTemplate where the total is too large."""
    count_step(size)
    _budget.made += size
    if size > LARGEST or _budget.made > LARGEST_SUM:
        raise refusal("produces more text than any conversation has")


def checked_size(value: Any) -> Any:
    """The value itself, after counting its size."""
    if isinstance(value, str | bytes | list | tuple | dict):
        count_size(len(value))
    return value


def concat(pieces: Iterable[str]) -> str:
    """The concatenated pieces of a text, counted beforehand."""
    pieces = list(pieces)
    count_size(sum(map(len, pieces)))
    return "".join(pieces)


def checked_nesting(value: Any) -> Any:
    """A list or mapping, refused where writing it out would take too long: repeated values are written repeatedly."""
    parts = value.values() if isinstance(value, Mapping) else value
    if any(isinstance(part, list | tuple | dict) or hasattr(part, "_Namespace__attrs") for part in parts):
        left, waiting = MOST_NESTED, [value]
        while waiting:
            inner = _inside(waiting.pop())
            left -= 1 + len(inner)
            count_step()
            if left < 0:
                raise refusal("nests lists without end")
            waiting += [part for part in inner if isinstance(part, list | tuple | dict) or _is_namespace(part)]
    return value


def _is_namespace(value: Any) -> bool:
    return hasattr(value, "_Namespace__attrs")


def _inside(value: Any) -> Sequence[Any]:
    if _is_namespace(value):
        value = value._Namespace__attrs
    return list(value.values()) if isinstance(value, Mapping) else value


class Counted:
    """An iterable of a loop that counts its steps; it has a length if its items have one."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            count_step()
            yield item

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]  # Jinja relies on the TypeError


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result would be too large, before it is executed."""
    if operator == "*":
        for times, value in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(value, str | bytes | list | tuple):
                count_size(len(value) * max(0, times))
        if isinstance(left, int) and isinstance(right, int):
            _check_number(left.bit_length() + right.bit_length())
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_number(left.bit_length() * abs(right))
    elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        count_size(len(left) + len(right))
    elif operator == "%" and isinstance(left, str | bytes):
        check_format(left if isinstance(left, str) else left.decode("latin-1"))


def _check_number(bits: int) -> None:
    if bits > WIDEST:
        raise SecurityError("a chat template may not create a number with so many digits")


def check_format(text: str) -> None:
    """Refuse `'%100000d'` and widths that are given as arguments."""
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
        count_size(len(owner) * max([8, *(a for a in arguments if isinstance(a, int))]))  # type: ignore[arg-type]
    elif name != "format" and any(isinstance(a, int) and a > LARGEST for a in arguments):
        raise refusal("produces more text than any conversation has")


def check_replace(text: Any, old: Any, new: Any) -> None:
    """Refuse a replacement that would make a text too large."""
    if isinstance(text, str | bytes) and isinstance(old, type(text)) and isinstance(new, type(text)):
        count_size(len(text) + text.count(old) * len(new))  # type: ignore[arg-type]


def listed(items: Any) -> Any:
    """Items as a list, counted while they are generated; a text is unchanged."""
    return items if isinstance(items, str) else list(Counted(items))


def check_join(separator: Any, items: Any) -> None:
    """Refuse a join whose result would be too large."""
    if isinstance(items, str | list | tuple | dict) and isinstance(separator, str | bytes):
        count_size(sum(len(item) for item in items if isinstance(item, str | bytes)) + len(separator) * len(items))
