"""The rows of a JSON file that is one value: an array, an object, or a wrapper around an array."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sft.config.errors import UserError
from sft.data.readers.json_values import DECODER, MOST_LEVELS, broken, broken_at, row_of, shallow_row
from sft.data.readers.rows import Row

_SPACE = re.compile(r"[ \t\r\n]*")
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
# keys under which a JSON file may hold its rows
_WRAPPERS = ("data", "rows", "examples", "train", "instances", "records")


def array_rows(text: str, start: int, label: str) -> Iterator[tuple[int, Row]]:
    """An array's elements with their numbers from 1 on: at once where all is well, one by one where it is not.

    Args:
        text: the whole file's.
        start: where in it the array opens.
        label: the file's name, for errors.

    Raises:
        UserError: at some point the elements cannot be separated.
    """
    try:
        values = DECODER.decode(text)
    except (ValueError, RecursionError):
        yield from _one_by_one(text, start + 1, label)
        return
    deep = text.count("[") + text.count("{") > MOST_LEVELS
    for number, value in enumerate(values, 1):
        yield number, shallow_row(value) if deep else row_of(value)


def _one_by_one(text: str, at: int, label: str) -> Iterator[tuple[int, Row]]:
    """The elements of an array with a broken element, which is skipped by counting brackets."""
    number, at = 1, skip_space(text, at)
    if text[at : at + 1] == "]":
        return
    while True:
        where = f"{label} row {number} (line {text.count(chr(10), 0, at) + 1})"
        try:
            value, end = DECODER.raw_decode(text, at)
            row = shallow_row(value)
        except (ValueError, RecursionError) as error:
            closed = _end_of_value(text, at)
            if closed is None:
                raise UserError(f"{broken_at(error)}; the rows from here on cannot be read", where=where) from None
            end, row = closed, broken(_relative(error, text[at:closed]), text[at:closed])
        yield number, row
        at = skip_space(text, end)
        mark = text[at : at + 1]
        if mark == "]" and not text[at + 1 :].strip():
            return
        if mark != ",":
            what = (
                "the file ends early, inside the array"
                if not mark
                else f"a comma is missing after this row, or {mark!r}"
            )
            raise UserError(f"{what if not mark else what + ' is too much'}", where=where)
        number, at = number + 1, skip_space(text, at + 1)


def _relative(error: Exception, text: str) -> Exception:
    """The error with positions relative to the element for messages about that element."""
    try:
        DECODER.decode(text)
    except (ValueError, RecursionError) as own:
        return own
    return error


def _end_of_value(text: str, at: int) -> int | None:
    """The end of the object or list that opens here; None where it is never closed."""
    if text[at : at + 1] not in ("{", "["):
        comma = re.compile(r"[,\]\n]").search(text, at)
        return comma.start() if comma and comma.start() > at else None
    depth = 0
    for match in _BRACKETS.finditer(text, at):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return None


def single_rows(text: str, label: str) -> list[Row]:
    """The rows of a file with one object: the object itself, or those of an array inside it. Raises UserError for
    others."""
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise UserError(broken_at(error), where=label) from None
    if isinstance(value, dict):
        inner = [value[key] for key in _WRAPPERS if isinstance(value.get(key), list)]
        if len(inner) == 1 and all(isinstance(item, dict) for item in inner[0]):
            return [shallow_row(item) for item in inner[0]]
        return [shallow_row(value)]
    raise UserError(
        "holds no rows", where=label, remedy='an array of objects: [{"messages": [...]}, ...], or JSON lines'
    )


def skip_space(text: str, at: int) -> int:
    """The first place from `at` on that holds no white space of JSON's."""
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # matches the empty text too
