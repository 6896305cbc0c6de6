"""What a reader hands on: a row with its place, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self


class Where(str):
    """A row's place in the user's words, `train.jsonl row 3`, which also knows its parts.

    Attributes:
        file: the file's name (a hub dataset's id and split, a generator's source).
        row: number as the user counts: a JSONL file's line, a JSON array's element from 1 on, a table's record from 1 on.
    """

    __slots__ = ("file", "row")
    file: str
    row: int

    def __new__(cls, file: str, row: int, note: str = "") -> Self:
        self = super().__new__(cls, f"{file} row {row}{note}")
        self.file, self.row = file, row
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # the text alone does not rebuild its parts
        return (Where, (self.file, self.row, self[len(f"{self.file} row {self.row}") :]))


class Broken:
    """Stands for a row that could not be read; the converter raises its reason.

    Attributes:
        kind: the reason without particulars, by which a report counts.
        reason: the reason in full.
    """

    __slots__ = ("kind", "reason")

    def __init__(self, kind: str, detail: str = "") -> None:
        self.kind, self.reason = kind, f"{kind}{detail}"

    def __repr__(self) -> str:
        return f"Broken({self.reason!r})"


Row = dict[str, Any] | Broken
Rows = Iterator[tuple[Where, Row]]
