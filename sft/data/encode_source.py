"""All rows of one source, read, converted and encoded into a new entry of the cache."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.data.cache import Cache
from sft.data.cache.entries import Entry, Writer
from sft.data.cache.keys import key_of
from sft.data.content import Options
from sft.data.encode import COLUMNS, Chunk, RowEncoder, chained, encode_rows
from sft.data.formats import Converter, RowError, recognise
from sft.data.formats.converter import HEAD
from sft.data.formats.errors import without_broken
from sft.data.readers import read_source
from sft.data.report.notes import Notes, collected
from sft.data.source import Source

if TYPE_CHECKING:
    from sft.data.labels.encoder import Encoder
    from sft.data.readers.rows import Where

log = logging.getLogger(__name__)

SAY_EVERY = 10  # seconds between two progress lines
REASONS_KEPT = 1000  # failures whose reason is kept in full, of each source


@dataclass(frozen=True)
class Task:
    """One source and how its rows become tokens.

    Args:
        name: of the source.
        source: what to read.
        where: the source's key in the config, for errors.
        encoder: turns conversations into labelled tokens.
        options: see Options.
    """

    name: str
    source: Source
    where: str
    encoder: Encoder
    options: Options

    def rows(self) -> Iterable[tuple[Where, Any]]:
        """Its rows with their places."""
        return read_source(self.source, self.name, self.where)

    def converter(self, head: list[Any]) -> Converter:
        """What turns its rows into conversations, by the format of the first ones."""
        options = self.options
        return recognise(
            self.source, head, self.where, use_text_column=options.use_text_column, consecutive=options.consecutive
        )


@dataclass(frozen=True)
class Converted:
    """All rows of a source as conversations.

    Args:
        rows: places and conversations, or the RowErrors why there are none.
        converter: what made them.
        notes: on the rows.
    """

    rows: list[tuple[Where, Any]]
    converter: Converter
    notes: Notes

    def digest(self) -> str:
        """A digest of the conversations and of the notes on them."""
        facts = [[place, str(item) if isinstance(item, RowError) else item] for place, item in self.rows]
        return key_of({"rows": facts, "format": self.converter.format, "notes": self.notes.counts})


def converted(task: Task) -> Converted:
    """Read and convert all rows of a source. Raises UserError for what the readers and the formats refuse."""
    rows = list(task.rows())
    converter = task.converter([row for _, row in rows[:HEAD]])
    row_encoder = RowEncoder(converter, None)  # type: ignore[arg-type]  # converts only
    found: list[tuple[Where, Any]] = []
    notes = Notes()
    with collected() as noted:
        for place, row in rows:
            noted.clear()
            try:
                found.append((place, row_encoder.conversation(row)))
            except RowError as error:
                found.append((place, error))
                continue
            for kind, detail in noted:
                notes.add(kind, detail, str(place))
    return Converted(found, converter, notes)


def encode_source(task: Task, conversations: Converted | None, cache: Cache, key: str) -> Entry:
    """Check and encode all rows of a source into a new cache entry.

    Args:
        conversations: of the source, where it is converted already; None reads and converts it.
        cache: gets the entry.
        key: of the entry.

    Raises:
        UserError: what the readers, the formats and the encoder's check refuse.
    """
    rows = iter(task.rows() if conversations is None else conversations.rows)
    head = list(islice(rows, HEAD))
    if conversations is None:
        converter, notes = task.converter([row for _, row in head]), Notes()
        row_encoder = RowEncoder(converter, task.encoder, converter.as_text)
    else:
        converter, notes = conversations.converter, conversations.notes
        row_encoder = RowEncoder(None, task.encoder, converter.as_text)  # rows are conversations already
    checked = _check(row_encoder, [row for _, row in head], task.options.check_rows)
    said = time.monotonic()
    with cache.writer(key) as writer:
        encoded = _Encoded(writer, notes)
        for places, chunk in encode_rows(chained(head, rows), row_encoder, task.options.num_proc):
            encoded.add(places, chunk)
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                log.info("%s: %s rows tokenized so far", task.where, f"{encoded.read:,}")
        return writer.commit({**encoded.facts(), "checked": checked, "format": converter.format})


class _Encoded:
    """What is encoded of a source so far: the columns go to the cache, what else is known of the rows is kept.

    Args:
        writer: of the source's entry.
        notes: get those of the rows.
    """

    def __init__(self, writer: Writer, notes: Notes) -> None:
        self.writer, self.notes, self.read = writer, notes, 0
        self.files: dict[str, int] = {}
        self.failures: list[list[Any]] = []
        writer.append({name: np.empty(0, dtype) for name, dtype in COLUMNS.items()})

    def add(self, places: list[Where], chunk: Chunk) -> None:
        """Add a chunk of encoded rows, with their places."""
        local = chunk.columns["conversation"]
        file = [self.files.setdefault(place.file, len(self.files)) for place in places]
        number = [place.row for place in places]
        self.writer.append(
            {
                **chunk.columns,
                "conversation": local + self.read,
                "file": np.array(file, np.int32)[local],
                "row": np.array(number, np.int64)[local],
            }
        )
        self.notes.merge(chunk.notes, [str(place) for place in places])
        for failure in chunk.failures:
            full = failure.reason if len(self.failures) < REASONS_KEPT else failure.kind
            self.failures.append([file[failure.place], number[failure.place], failure.kind, full, failure.broken])
        self.read += len(places)

    def facts(self) -> dict[str, Any]:
        """What the entry holds beside its columns."""
        return {"files": list(self.files), "failures": self.failures, "read": self.read, "notes": self.notes.counts}


def _check(row_encoder: RowEncoder, items: list[Any], count: int) -> int:
    """Cross-check the masks of some rows: the first ones and others drawn from the head. Raises UserError."""
    if not count:
        return 0
    chosen = items[: count // 2]
    chosen += Random(0).sample(items[len(chosen) :], min(count - len(chosen), len(items) - len(chosen)))
    conversations = list(without_broken(row_encoder.conversation, chosen))
    if conversations:
        row_encoder.encoder.check(conversations)
    return len(conversations)
