"""One JSON value as a row, or why it is none."""

from __future__ import annotations

import json
from typing import Any

from sft.data.readers.rows import Broken, Row


class DuplicateKey(ValueError):
    """An object has one key twice, so its meaning is ambiguous."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKey(next(key for key in keys if keys.count(key) > 1))
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)
# Real rows have ten levels at most. Deeper ones would hit Python's recursion limit later.
MOST_LEVELS = 100


def _decoded(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, and RecursionError where it is nested deeper than MOST_LEVELS."""
    value = DECODER.decode(text)
    if text.count("[") + text.count("{") > MOST_LEVELS:
        refuse_deep(value)
    return value


def refuse_deep(value: Any) -> None:
    """Raise RecursionError for a value with more than MOST_LEVELS of nested lists and objects."""
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        level = (
            [
                inner
                for outer in level
                for inner in (outer.values() if isinstance(outer, dict) else outer)
                if isinstance(inner, dict | list)
            ]
            if level
            else []
        )
        if not level:
            return
    raise RecursionError


def parse_line(line: bytes) -> Row:
    """The object of one line, or the reason why it has none."""
    line = line.rstrip(b"\r\n")
    try:
        value = _decoded(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Broken("invalid UTF-8", f" at byte {error.start + 1} of the line")
    except (ValueError, RecursionError) as error:
        return broken(error, line.decode("utf-8").strip())
    return row_of(value)


def shallow_row(value: Any) -> Row:
    """A value as a row, or why it is none: nested too deeply, or no object."""
    try:
        refuse_deep(value) if isinstance(value, dict | list) else None
    except RecursionError as error:
        return broken(error, "")
    return row_of(value)


def row_of(value: Any) -> Row:
    """A value that is not too deep as a row, or why it is none."""
    if isinstance(value, dict):
        return value if value else Broken("the row is empty")
    kind = (
        "null" if value is None else {list: "a list", str: "text", bool: "true or false"}.get(type(value), "a number")
    )
    return Broken("the row is not an object", f" but {kind}")


def broken(error: Exception, text: str) -> Broken:
    """Why a text is not JSON, in words that help to fix it."""
    if isinstance(error, RecursionError):
        return Broken("nested too deeply")
    if isinstance(error, DuplicateKey):
        return Broken("duplicate key", f" {str(error)!r}")
    if "\0" in text:
        return Broken("broken JSON", ": NUL bytes, as after a crash while writing")
    if not isinstance(error, json.JSONDecodeError):
        return Broken("broken JSON", f": {error}")
    note = ""
    if error.msg == "Extra data":
        note = " (two rows in one line?)" if text[error.pos :].startswith("{") else ""
    elif text.startswith("{'"):
        note = " (JSON's quotes are double)"
    elif "Unterminated" in error.msg or (error.msg.startswith("Expecting") and error.pos >= len(text) - 1):
        note = " (cut off?)"
    return Broken("broken JSON", f": {error.msg.removesuffix(' at')} at character {error.pos + 1}{note}")


def broken_at(error: Exception) -> str:
    """Why a file is no JSON, with the line and the column."""
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg.removesuffix(' at')} at line {error.lineno}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else f"broken JSON: {error}"
