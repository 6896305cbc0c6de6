"""Renamed columns: {our column: theirs}; theirs may be a path into nested objects and lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft.config.errors import UserError
from sft.config.text import did_you_mean
from sft.data.formats.table import FORMATS
from sft.data.source import Source


def rename_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under our names; a column of theirs may be a dotted path into nested objects and lists."""
    taken = {theirs for theirs in columns.values()}
    result = {key: value for key, value in row.items() if key not in taken or key in columns}
    for ours, theirs in columns.items():
        found, value = _lookup(row, theirs)
        if found:
            result[ours] = value
        else:
            result.pop(ours, None)
    return result


def checked_columns(source: Source, rows: list[Any], where: str) -> dict[str, str]:
    """The source's mapping of columns. Raises UserError for one of our columns or theirs that does not exist."""
    known = sorted(set().union(*(form.columns for form in FORMATS.values())))
    for ours, theirs in source.columns.items():
        key = f"{where}.columns.{ours}"
        if source.convert is None and ours not in known:
            remedy = did_you_mean(ours, known, f"columns: {', '.join(known)}")
            raise UserError(f"{ours} is not a column that a format reads", where=key, remedy=remedy)
        if rows and not any(_lookup(row, theirs)[0] for row in rows):
            names = list(dict.fromkeys(str(name) for row in rows for name in row))
            remedy = did_you_mean(theirs, names, f"columns: {', '.join(names[:20])}")
            raise UserError(f"no row has a column {theirs}", where=key, remedy=remedy)
    return dict(source.columns)


def _lookup(row: Mapping[str, Any], path: str) -> tuple[bool, Any]:
    if path in row:
        return True, row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return False, None
    return True, value
