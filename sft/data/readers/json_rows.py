"""JSON and JSONL. A broken row is named with its number and reason, and reading goes on behind it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from sft.config.errors import UserError
from sft.data.readers.lines import LONGEST_LINE, described, lines_of, whole
from sft.data.readers.rows import Broken, Row, Rows, Where

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SPACE = re.compile(r"[ \t\r\n]*")
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
# keys under which a JSON file may hold its rows
_WRAPPERS = ("data", "rows", "examples", "train", "instances", "records")


class DuplicateKey(ValueError):
    """An object names one key twice, and which of the two is meant nobody knows."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKey(next(key for key in keys if keys.count(key) > 1))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
# Real rows have ten levels at most. What is deeper would meet Python's limit in whatever walks through it later.
MOST_LEVELS = 100


def _decoded(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, and RecursionError where it is nested deeper than MOST_LEVELS."""
    value = _DECODER.decode(text)
    if text.count("[") + text.count("{") > MOST_LEVELS:
        refuse_deep(value)
    return value


def refuse_deep(value: Any) -> None:
    """Raise RecursionError for a value with more than MOST_LEVELS of lists and objects in each other."""
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


def read_jsonl(stream: IO[bytes], label: str) -> Rows:
    """One row a line; the row's number is the line's, blank lines counted but not read."""
    for number, line in enumerate(lines_of(stream), 1):
        if line is None:
            yield Where(label, number), Broken("the line is too long", f": more than {described(LONGEST_LINE)}")
            continue
        if number == 1:
            line = _without_bom(line, label)
            if line.strip() == b"[" or _is_array(line):
                yield from read_json_text(whole(stream, label, line), label)
                return
        if not line.isspace():
            yield Where(label, number), parse_line(line)


def read_json(stream: IO[bytes], label: str) -> Rows:
    """An array of rows, one object, a wrapper around an array ({"data": [...]}), or JSON lines under another name."""
    data = _without_bom(whole(stream, label), label)
    if data.strip():
        yield from read_json_text(data, label)


def read_json_text(data: bytes, label: str) -> Rows:
    """The rows of a whole JSON file. Raises UserError where its rows cannot be told apart."""
    try:
        text, intact = data.decode("utf-8"), True
    except UnicodeDecodeError:
        text, intact = data.decode("utf-8", "surrogateescape"), False
    start = _skip_space(text, 0)
    if text[start : start + 1] == "[":
        rows = _array(text, start, label)
    elif _is_lines(text, start):
        yield from (
            (Where(label, number), parse_line(line + b"\n"))
            for number, line in enumerate(data.split(b"\n"), 1)
            if line.strip()
        )
        return
    else:
        rows = enumerate(_single(text, label), 1)  # type: ignore[assignment]
    for number, row in rows:
        yield Where(label, number), row if intact or _encodable(row) else Broken("invalid UTF-8")


def parse_line(line: bytes) -> Row:
    """The object of one line, or why there is none."""
    line = line.rstrip(b"\r\n")
    try:
        value = _decoded(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Broken("invalid UTF-8", f" at byte {error.start + 1} of the line")
    except (ValueError, RecursionError) as error:
        return _broken(error, line.decode("utf-8").strip())
    return _row(value)


def _shallow_row(value: Any) -> Row:
    try:
        refuse_deep(value) if isinstance(value, dict | list) else None
    except RecursionError as error:
        return _broken(error, "")
    return _row(value)


def _row(value: Any) -> Row:
    if isinstance(value, dict):
        return value if value else Broken("the row is empty")
    kind = (
        "null" if value is None else {list: "a list", str: "text", bool: "true or false"}.get(type(value), "a number")
    )
    return Broken("the row is not an object", f" but {kind}")


def _broken(error: Exception, text: str) -> Broken:
    """Why a text is no JSON, in words that help."""
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


def _array(text: str, start: int, label: str) -> Iterator[tuple[int, Row]]:
    """An array's elements: at once where all is well, one by one where it is not."""
    try:
        values = _DECODER.decode(text)
    except (ValueError, RecursionError):
        yield from _one_by_one(text, start + 1, label)
        return
    deep = text.count("[") + text.count("{") > MOST_LEVELS
    for number, value in enumerate(values, 1):
        yield number, _shallow_row(value) if deep else _row(value)


def _one_by_one(text: str, at: int, label: str) -> Iterator[tuple[int, Row]]:
    """The elements of an array with a broken one in it; what is broken is skipped by counting brackets."""
    number, at = 1, _skip_space(text, at)
    if text[at : at + 1] == "]":
        return
    while True:
        where = f"{label} row {number} (line {text.count(chr(10), 0, at) + 1})"
        try:
            value, end = _DECODER.raw_decode(text, at)
            row = _shallow_row(value)
        except (ValueError, RecursionError) as error:
            closed = _end_of_value(text, at)
            if closed is None:
                raise UserError(f"{_broken_at(error)}; the rows from here on cannot be read", where=where) from None
            end, row = closed, _broken(_relative(error, text[at:closed]), text[at:closed])
        yield number, row
        at = _skip_space(text, end)
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
        number, at = number + 1, _skip_space(text, at + 1)


def _relative(error: Exception, text: str) -> Exception:
    """The error as it reads for the element alone, whose positions mean something to who looks at it."""
    try:
        _DECODER.decode(text)
    except (ValueError, RecursionError) as own:
        return own
    return error


def _broken_at(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {error.msg.removesuffix(' at')} at line {error.lineno}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else f"broken JSON: {error}"


def _end_of_value(text: str, at: int) -> int | None:
    """Where the object or list that opens here is closed again; None where it never is."""
    if text[at : at + 1] not in ("{", "["):
        comma = re.compile(r"[,\]\n]").search(text, at)
        return comma.start() if comma and comma.start() > at else None
    depth = 0
    for match in _BRACKETS.finditer(text, at):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return None


def _single(text: str, label: str) -> list[Row]:
    """The rows of a file that holds one object: its own, or those of an array inside."""
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise UserError(_broken_at(error), where=label) from None
    if isinstance(value, dict):
        inner = [value[key] for key in _WRAPPERS if isinstance(value.get(key), list)]
        if len(inner) == 1 and all(isinstance(item, dict) for item in inner[0]):
            return [_shallow_row(item) for item in inner[0]]
        return [_shallow_row(value)]
    raise UserError(
        "holds no rows", where=label, remedy='an array of objects: [{"messages": [...]}, ...], or JSON lines'
    )


def _is_lines(text: str, start: int) -> bool:
    """Whether the text is JSON lines: more than one line, and most begin and end an object each."""
    lines = [line.strip() for line in text[start : start + (1 << 20)].split("\n")]
    lines = [line for line in lines if line]
    if len(lines) < 2:
        return False
    whole = sum(line.startswith("{") and line.endswith("}") for line in lines)
    return 2 * whole >= len(lines)


def _is_array(line: bytes) -> bool:
    """Whether a JSONL file's first line opens an array of objects: JSON under the wrong name."""
    return re.match(rb"\s*\[\s*\{", line) is not None and b'"role"' not in line[:40]


def _encodable(row: Row) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode() if isinstance(row, dict) else None
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _skip_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # matches the empty text too


def _without_bom(data: bytes, label: str) -> bytes:
    if data.startswith(_UTF16):
        raise UserError("the file is UTF-16", where=label, remedy="save it as UTF-8: iconv -f UTF-16 -t UTF-8")
    return data.removeprefix(_BOM)
