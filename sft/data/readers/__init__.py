"""From sources to rows, each with its place; a row that cannot be read is replaced by the reason, and reading
continues."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from sft.config.errors import UserError
from sft.data.readers.hub import read_hub
from sft.data.readers.json_rows import read_json, read_jsonl
from sft.data.readers.paths import File, files_of
from sft.data.readers.rows import Broken, Row, Rows, Where
from sft.data.readers.slices import parse_split
from sft.data.readers.streams import file_errors, open_bytes
from sft.data.readers.tables import read_arrow, read_csv, read_parquet, read_saved
from sft.data.source import Source

__all__ = ["File", "files_of", "read_file", "read_source"]


def read_source(source: Source, name: str, where: str | None = None) -> Rows:
    """The rows of one source in order, each with its place ("train.jsonl row 3").

    A row that cannot be read comes as a `Broken` with its reason. `split` and `samples` are applied.

    Args:
        source: what to read.
        name: the source's name, for rows that are not from a file.
        where: the source's key in the config, for errors; `dataset.sources.<name>` if left out.

    Raises:
        UserError: no such file, split or hub dataset; a file that cannot be read to its end; no rows at all.
    """
    where = where or f"dataset.sources.{name}"
    split, part = parse_split(source.split, f"{where}.split")
    rows = part.of(_all_rows(source, name, split, where))
    rows = islice(rows, source.samples) if source.samples else rows
    count = 0
    for item in rows:
        count += 1
        yield item
    if not count:
        raise UserError(f"{source.described()} has no rows", where=where)


def read_file(file: File) -> Rows:
    """The rows of one file. Raises UserError where the rest of the file cannot be read."""
    if file.kind == "saved":
        yield from read_saved(file)
        return
    with file_errors(file), open_bytes(file) as stream:
        if file.kind == "json":
            yield from read_json(stream, file.label)
        elif file.kind == "jsonl":
            yield from read_jsonl(stream, file.label)
        elif file.kind in ("csv", "tsv"):
            yield from read_csv(stream, file.label, delimiter="\t" if file.kind == "tsv" else None)
        elif file.kind == "parquet":
            yield from read_parquet(stream, file.label)
        else:
            yield from read_arrow(stream, file.label)


def _all_rows(source: Source, name: str, split: str | None, where: str) -> Rows:
    if source.path:
        for file in files_of(source, where, split):
            yield from read_file(file)
    elif source.name:
        yield from read_hub(source, split, where)
    else:
        if split is not None:
            raise UserError("a generator has no splits", where=f"{where}.split")
        yield from read_generator(source.generator, name, where)


def read_generator(generator: object, name: str, where: str) -> Rows:
    """The rows that a `_target_` node, a function or an iterable gives."""
    if isinstance(generator, Mapping):
        from sft.config.build import build, targets_of

        node = dict(generator)
        # the targets were checked when the dataset node was built; here the same node is built for its rows
        generator = build(node, where=f"{where}.generator", allowed=[target for _, target in targets_of(node, "")])
    if isinstance(generator, Callable):  # type: ignore[arg-type]
        generator = generator()  # type: ignore[operator]
    if not isinstance(generator, Iterable) or isinstance(generator, (str, bytes, Mapping)):
        raise UserError(f"gives {type(generator).__name__}, not rows", where=f"{where}.generator")
    for number, row in enumerate(generator, 1):
        yield Where(name, number), as_row(row)


def as_row(value: object) -> Row:
    """The value as a row, or the reason why it is not one."""
    return value if isinstance(value, dict) else Broken("the row is not an object", f" but {type(value).__name__}")
