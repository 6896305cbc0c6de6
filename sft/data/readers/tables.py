"""Tables: CSV, Parquet, Arrow files and directories of save_to_disk."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import IO, Any

from sft.config.errors import UserError
from sft.data.readers.lines import LONGEST_LINE, TextLines
from sft.data.readers.paths import File
from sft.data.readers.rows import Broken, Row, Rows, Where
from sft.data.readers.streams import MOST_GROWTH, SMALLEST_BOMB

BATCH = 1024  # rows read from a columnar file at once
FIRST = 16  # rows read at first, until their size is known
BATCH_BYTES = 64 << 20


def read_csv(stream: IO[bytes], label: str, delimiter: str | None = None) -> Rows:
    """A CSV file's records as {column: text}; the first is row 1, and its line is named as well.

    Raises:
        UserError: a header with an empty or repeated name; a quote that never closes.
    """
    csv.field_size_limit(LONGEST_LINE)
    text = TextLines(stream, label)
    first = next(text, "")
    if not first.strip():
        return
    if first.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        raise UserError("the file is UTF-16", where=label, remedy="convert it to UTF-8: iconv -f UTF-16 -t UTF-8")
    reader = csv.reader(chain([first], text), delimiter=delimiter or _delimiter(first), strict=True)
    header = _header(reader, label)
    number = 0
    while True:
        line = reader.line_num + 1
        where = Where(label, number + 1, f" (line {line})")
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise UserError("a quote opens here and never closes", where=str(where)) from None
            number += 1
            yield where, Broken("broken CSV", f": {error}")
            continue
        if fields:
            number += 1
            yield where, _record(header, fields)


def read_parquet(stream: IO[bytes], label: str) -> Rows:
    """A Parquet file's rows, batch by batch. Raises UserError for a damaged file."""
    import pyarrow.parquet

    with _intact("Parquet", label):
        file = pyarrow.parquet.ParquetFile(stream)
        yield from _from_batches(_bounded(_batches(file), stream, label), label)


def read_arrow(stream: IO[bytes], label: str) -> Rows:
    """An Arrow file's rows, in the file format or the streaming one that datasets writes; UserError when damaged."""
    import pyarrow

    with _intact("Arrow", label):
        try:
            file = pyarrow.ipc.open_file(stream)
            batches: Iterable[Any] = (file.get_batch(index) for index in range(file.num_record_batches))
        except pyarrow.ArrowInvalid:
            stream.seek(0)
            batches = pyarrow.ipc.open_stream(stream)
        yield from _from_batches(_bounded((part for batch in batches for part in _pieces(batch)), stream, label), label)


def _batches(file: Any) -> Iterator[Any]:
    """A Parquet file's batches, with few rows each where rows are large: one text may be shared by millions of rows."""
    for group in range(file.num_row_groups):
        first = next(file.iter_batches(FIRST, row_groups=[group]), None)
        if first is None:
            continue
        of_a_row = max(1, first.nbytes // max(1, first.num_rows))
        yield from file.iter_batches(min(BATCH, max(1, BATCH_BYTES // of_a_row)), row_groups=[group])


def _bounded(batches: Iterable[Any], stream: IO[bytes], label: str) -> Iterator[Any]:
    """Batches, as long as they do not grow more than text can.

    Raises:
        UserError: they grow more.
    """
    place = stream.tell()
    total, most = 0, max(SMALLEST_BOMB, MOST_GROWTH * stream.seek(0, os.SEEK_END))
    stream.seek(place)
    for batch in batches:
        total += batch.nbytes
        if total > most:
            raise UserError(
                f"grows to more than {MOST_GROWTH} times its size when it is read, as no rows of text do",
                where=label,
                remedy="if that is intended, write it as JSON lines",
            )
        yield batch


@contextmanager
def _intact(kind: str, label: str) -> Iterator[None]:
    """Turn the library's errors about a damaged file into a UserError."""
    import pyarrow

    try:
        yield
    except MemoryError as error:
        raise UserError(f"has rows that do not fit into memory: {_first_line(error)}", where=label) from error
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"is not an intact {kind} file: {_first_line(error)}", where=label) from error


def read_saved(file: File) -> Rows:
    """The rows of a directory that datasets' save_to_disk wrote; of several splits `train`, unless another is named."""
    from datasets import DatasetDict, load_from_disk

    if not file.path.exists():
        there = sorted(path.name for path in file.path.parent.iterdir() if path.is_dir())
        raise UserError(f"no split {file.path.name}", where=str(file.path.parent), remedy=f"splits: {', '.join(there)}")
    try:
        data = load_from_disk(str(file.path))
    except Exception as error:  # an incomplete directory may make it raise anything
        raise UserError(f"cannot be read: {_first_line(error)}", where=str(file.path)) from error
    if isinstance(data, DatasetDict):
        if "train" not in data and len(data) > 1:
            raise UserError("it has several splits", where=str(file.path), remedy=f"split: one of {', '.join(data)}")
        data = data["train"] if "train" in data else next(iter(data.values()))
    yield from from_dataset(data, file.label)


def from_dataset(data: Any, label: str) -> Rows:
    """The rows of a `datasets.Dataset`, taken as Arrow tables so that no image or audio is decoded on the way."""
    tables = data.with_format("arrow").iter(batch_size=BATCH)
    yield from _from_batches((part for table in tables for part in _pieces(table)), label)


def without_fillers(value: Any) -> Any:
    """A nested value without the nulls that a table adds to give all objects the same keys."""
    if isinstance(value, dict):
        return {key: without_fillers(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_fillers(item) for item in value]
    return value


def _from_batches(batches: Iterable[Any], label: str) -> Rows:
    number = 0
    for batch in batches:
        names = batch.schema.names
        nested = [name for name in names if _holds_struct(batch.schema.field(name).type)]
        for row in _records(batch):
            number += 1
            if isinstance(row, dict):
                for name in nested:
                    row[name] = without_fillers(row[name])
            yield Where(label, number), row


def _records(batch: Any) -> list[Row]:
    """A batch's rows. It is validated first, because the library would read out of bounds with a damaged file's
    offsets."""
    if _is_text_valid(batch):
        return batch.to_pylist()
    pieces = [batch.slice(index, 1) for index in range(batch.num_rows)]
    return [piece.to_pylist()[0] if _is_text_valid(piece) else Broken("invalid UTF-8") for piece in pieces]


def _is_text_valid(batch: Any) -> bool:
    """Whether all texts are UTF-8. Raises pyarrow.ArrowInvalid for other damage."""
    import pyarrow

    try:
        batch.validate(full=True)
    except pyarrow.ArrowInvalid as error:
        if "UTF8" in str(error):
            return False
        raise
    return True


def _pieces(table: Any) -> Iterable[Any]:
    return (table.slice(start, BATCH) for start in range(0, table.num_rows, BATCH))


def _holds_struct(kind: Any) -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _holds_struct(kind.value_type)
    return types.is_struct(kind)


def _delimiter(header: str) -> str:
    """The comma, or the delimiter of a header without commas."""
    return next((mark for mark in ",;\t|" if mark in header), ",")


def _header(reader: Any, label: str) -> list[str]:
    try:
        header = [name.strip() for name in next(reader)]
    except csv.Error as error:
        raise UserError(f"the header is broken: {error}", where=label) from None
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice and twice != [""]:
        raise UserError(f"the header names {', '.join(map(repr, twice))} twice", where=label)
    return header


def _record(header: list[str], fields: list[str]) -> Row:
    if len(fields) != len(header):
        return Broken("wrong number of fields", f": {len(fields)} where the header has {len(header)}")
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return Broken("invalid UTF-8")
    return dict(zip(header, fields, strict=True))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
