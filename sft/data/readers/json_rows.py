"""JSON and JSONL. A broken row is reported with its number and reason, and reading continues after it."""

from __future__ import annotations

import json
import re
from typing import IO

from sft.config.errors import UserError
from sft.data.readers.json_arrays import array_rows, single_rows, skip_space
from sft.data.readers.json_values import parse_line
from sft.data.readers.lines import LONGEST_LINE, lines_of, read_whole, size_text
from sft.data.readers.rows import Broken, Row, Rows, Where

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_jsonl(stream: IO[bytes], label: str) -> Rows:
    """One row per line; the row's number is the line's, blank lines are counted but not read."""
    for number, line in enumerate(lines_of(stream), 1):
        if line is None:
            yield Where(label, number), Broken("the line is too long", f": more than {size_text(LONGEST_LINE)}")
            continue
        if number == 1:
            line = _without_bom(line, label)
            if line.strip() == b"[" or _is_array(line):
                yield from read_json_text(read_whole(stream, label, line), label)
                return
        if not line.isspace():
            yield Where(label, number), parse_line(line)


def read_json(stream: IO[bytes], label: str) -> Rows:
    """An array of rows, one object, a wrapper around an array ({"data": [...]}), or JSON lines under another name."""
    data = _without_bom(read_whole(stream, label), label)
    if data.strip():
        yield from read_json_text(data, label)


def read_json_text(data: bytes, label: str) -> Rows:
    """The rows of a complete JSON file. Raises UserError where its rows cannot be separated."""
    try:
        text, intact = data.decode("utf-8"), True
    except UnicodeDecodeError:
        text, intact = data.decode("utf-8", "surrogateescape"), False
    start = skip_space(text, 0)
    if text[start : start + 1] == "[":
        rows = array_rows(text, start, label)
    elif _is_lines(text, start):
        yield from (
            (Where(label, number), parse_line(line + b"\n"))
            for number, line in enumerate(data.split(b"\n"), 1)
            if line.strip()
        )
        return
    else:
        rows = enumerate(single_rows(text, label), 1)  # type: ignore[assignment]
    for number, row in rows:
        yield Where(label, number), row if intact or _encodable(row) else Broken("invalid UTF-8")


def _is_lines(text: str, start: int) -> bool:
    """Whether the text is JSON lines: several lines, most of which are one object each."""
    lines = [line.strip() for line in text[start : start + (1 << 20)].split("\n")]
    lines = [line for line in lines if line]
    if len(lines) < 2:
        return False
    whole = sum(line.startswith("{") and line.endswith("}") for line in lines)
    return 2 * whole >= len(lines)


def _is_array(line: bytes) -> bool:
    """Whether a JSONL file's first line opens an array of objects, so that the file is plain JSON."""
    return re.match(rb"\s*\[\s*\{", line) is not None and b'"role"' not in line[:40]


def _encodable(row: Row) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode() if isinstance(row, dict) else None
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _without_bom(data: bytes, label: str) -> bytes:
    if data.startswith(_UTF16):
        raise UserError("the file is UTF-16", where=label, remedy="convert it to UTF-8: iconv -f UTF-16 -t UTF-8")
    return data.removeprefix(_BOM)
