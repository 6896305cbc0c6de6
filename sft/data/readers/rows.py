"""What a reader yields: a row with its place, or the reason why it cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self


class Where(str):
    """A row's place as text, `train.jsonl row 3`, with its parts as attributes.

    Attributes:
        file: the file's name (a hub dataset's id and split, a generator's source).
        row: number: a JSONL file's line, a JSON array's element or a table's record, counted from 1.
    """

    __slots__ = ("file", "row")
    file: str
    row: int

    def __new__(cls, file: str, row: int, note: str = "") -> Self:
        self = super().__new__(cls, f"{file} row {row}{note}")
        self.file, self.row = file, row
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # the parts cannot be rebuilt from the text
        return (Where, (self.file, self.row, self[len(f"{self.file} row {self.row}") :]))


class Broken:
    """Stands for a row that could not be read; the converter raises its reason.

    Attributes:
        kind: the reason without details, by which the report counts.
        reason: the reason in full.
    """

    __slots__ = ("kind", "reason")

    def __init__(self, kind: str, detail: str = "") -> None:
        self.kind, self.reason = kind, f"{kind}{detail}"

    def __repr__(self) -> str:
        return f"Broken({self.reason!r})"


Row = dict[str, Any] | Broken
Rows = Iterator[tuple[Where, Row]]
