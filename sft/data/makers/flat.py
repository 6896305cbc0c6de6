"""Dolly 15k and Alpaca: a question, its context and an answer, as messages."""

from __future__ import annotations

from collections.abc import Iterator

from sft.data.formats import FORMATS, RowError
from sft.data.makers.made import MakerResult
from sft.data.readers.rows import Broken, Rows


def dolly(rows: Rows) -> Iterator[MakerResult]:
    """Rows of databricks-dolly-15k (instruction, context, response, category)."""
    return _instructions(rows, "dolly", ("category",))


def alpaca(rows: Rows) -> Iterator[MakerResult]:
    """Rows of Alpaca (instruction, input, output); the column `text`, where there is one, repeats them and is not read."""
    return _instructions(rows, "alpaca", ())


def _instructions(rows: Rows, name: str, keep: tuple[str, ...]) -> Iterator[MakerResult]:
    form = FORMATS["instruction"]
    for where, row in rows:
        if isinstance(row, Broken):
            yield MakerResult(None, reason=row.kind, where=where)
            continue
        try:
            conversation = form.conversation(row)
        except RowError as error:
            yield MakerResult(None, reason=error.kind, where=where)
            continue
        yield MakerResult({**conversation, "source": name, **{key: row[key] for key in keep if row.get(key)}})
