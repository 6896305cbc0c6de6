"""One source as tokens and labels: from the cache, or read, converted and encoded."""

from __future__ import annotations

import hashlib
import logging
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.data.cache import Cache
from sft.data.cache.entries import Entry
from sft.data.cache.keys import key_of
from sft.data.content import Options, content_of, facts_of
from sft.data.documents import Documents, Tokens
from sft.data.encode import COLUMNS, Work, encode_rows
from sft.data.formats import Converter, RowError, recognise
from sft.data.readers import read_source
from sft.data.report.notes import Notes, collected, reported
from sft.data.source import Source

if TYPE_CHECKING:
    from sft.data.labels.encoder import Encoder
    from sft.data.readers.rows import Where

log = logging.getLogger(__name__)

HEAD = 5000  # rows over which a source's format is recognised
SAY_EVERY = 10  # seconds between two lines about a long tokenization
REASONS_KEPT = 1000  # failures whose reason is kept in full, of each source


@dataclass(frozen=True)
class Failed:
    """A row that became no training row."""

    file: str
    row: int
    kind: str
    reason: str
    broken: bool


@dataclass(frozen=True)
class Loaded:
    """A source's tokens and what happened on the way to them.

    Args:
        name: the source's name.
        described: what it is, in words.
        format: the rows' format.
        files: names of its files; `documents.file` indexes them.
        tokens: all tokens.
        documents: every document made, whatever its length; `source` is 0 throughout.
        read: rows read.
        failed: those that became no conversation or could not be labelled.
        checked: rows whose mask was found twice.
        notes: {kind: {detail: {count, first}}}, what rows hold that was not read, or read otherwise.
        fingerprint: digest of the tokens and of which are trained, wherever they come from.
        cached: whether they come from the cache.
    """

    name: str
    described: str
    format: str
    files: list[str]
    tokens: Tokens
    documents: Documents
    read: int
    failed: list[Failed]
    checked: int
    notes: dict[str, dict[str, Any]]
    fingerprint: str
    cached: bool


def load(name: str, source: Source, encoder: Encoder, options: Options, cache: Cache, where: str) -> Loaded:
    """Load one source.

    Args:
        name: of the source.
        source: what to read.
        encoder: turns conversations into labelled tokens.
        options: see Options.
        cache: where tokens are kept.
        where: the source's key in the config, for errors.

    Raises:
        UserError: what the readers, the formats and the encoder's check refuse. A broken row is no error here.
    """
    rows: Iterable[tuple[Where, Any]] | None = None
    content, converter, notes = content_of(source, cache, where), None, Notes()
    if content is None:
        converter, rows, notes, content = _converted(name, source, options, where)
    key = key_of({"rows": content, "encoder": encoder.fingerprint, **facts_of(source, options)})
    with cache.locked(key):
        entry = cache.load(key)
        cached = entry is not None
        if entry is None:
            if rows is None:
                rows = read_source(source, name, where)
            entry = _encode(rows, converter, notes, source, encoder, options, cache, key, where)
    return _loaded(name, source, entry, cached)


def _converted(
    name: str, source: Source, options: Options, where: str
) -> tuple[Converter, list[tuple[Where, Any]], Notes, str]:
    """All rows as conversations (or the RowError why not), the notes on them, and a digest of both."""
    rows = list(read_source(source, name, where))
    head = [row for _, row in rows[:HEAD]]
    converter = recognise(source, head, where, use_text_column=options.use_text_column, consecutive=options.consecutive)
    work = Work(converter, None)  # type: ignore[arg-type]  # converts only
    converted: list[tuple[Where, Any]] = []
    notes = Notes()
    with collected() as found:
        for place, row in rows:
            found.clear()
            try:
                converted.append((place, work.conversation(row)))
            except RowError as error:
                converted.append((place, error))
                continue
            for kind, detail in found:
                notes.add(kind, detail, str(place))
    facts = [[place, str(item) if isinstance(item, RowError) else item] for place, item in converted]
    return converter, converted, notes, key_of({"rows": facts, "format": converter.format, "notes": notes.counts})


def _encode(
    rows: Iterable[tuple[Where, Any]],
    converter: Converter | None,
    notes: Notes,
    source: Source,
    encoder: Encoder,
    options: Options,
    cache: Cache,
    key: str,
    where: str,
) -> Entry:
    """Read, convert, check and encode all rows into a new cache entry."""
    rows = iter(rows)
    head = list(islice(rows, HEAD))
    if converter is None:
        converter = recognise(
            source,
            [row for _, row in head],
            where,
            use_text_column=options.use_text_column,
            consecutive=options.consecutive,
        )
        work = Work(converter, encoder, converter.as_text)
    else:
        work = Work(None, encoder, converter.as_text)  # rows are conversations already
    checked = _check(work, [row for _, row in head], options.check_rows, where)
    read, said = 0, time.monotonic()
    files: dict[str, int] = {}
    failures: list[list[Any]] = []
    with cache.writer(key) as writer:
        writer.append({name: np.empty(0, dtype) for name, dtype in COLUMNS.items()})
        for places, chunk in encode_rows(_rejoined(head, rows), work, options.num_proc):
            local = chunk.columns["conversation"]
            file = [files.setdefault(place.file, len(files)) for place in places]
            number = [place.row for place in places]
            writer.append(
                {
                    **chunk.columns,
                    "conversation": local + read,
                    "file": np.array(file, np.int32)[local],
                    "row": np.array(number, np.int64)[local],
                }
            )
            notes.merge(chunk.notes, [str(place) for place in places])
            for failure in chunk.failures:
                full = failure.reason if len(failures) < REASONS_KEPT else failure.kind
                failures.append([file[failure.place], number[failure.place], failure.kind, full, failure.broken])
            read += len(places)
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                log.info("%s: %s rows tokenized so far", where, f"{read:,}")
        meta = {"files": list(files), "failures": failures, "read": read, "checked": checked, "notes": notes.counts}
        return writer.commit({**meta, "format": converter.format})


def _check(work: Work, items: list[Any], count: int, where: str) -> int:
    """Find the masks of some rows twice: the first ones and others drawn from the head. Raises UserError."""
    if not count:
        return 0
    chosen = items[: count // 2]
    chosen += Random(0).sample(items[len(chosen) :], min(count - len(chosen), len(items) - len(chosen)))
    conversations = list(_conversations(work, chosen))
    if conversations:
        work.encoder.check(conversations)
    return len(conversations)


def _conversations(work: Work, items: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The conversations among the rows, broken ones left out."""
    for item in items:
        try:
            yield work.conversation(item)
        except RowError:
            continue


def _rejoined(head: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    yield from head
    head.clear()
    yield from rest


def _loaded(name: str, source: Source, entry: Entry, cached: bool) -> Loaded:
    columns, meta = entry.columns, entry.meta
    length = np.asarray(columns["length"])
    documents = Documents(
        source=np.zeros(len(length), np.int32),
        start=np.cumsum(length) - length,
        length=length,
        trained=np.asarray(columns["trained_count"]),
        row=np.asarray(columns["row"]),
        file=np.asarray(columns["file"]),
        conversation=np.asarray(columns["conversation"]),
        digest=np.asarray(columns["digest"]),
    )
    failed = [Failed(meta["files"][file], *rest) for file, *rest in meta["failures"]]
    return Loaded(
        name=name,
        described=source.described(),
        format=meta["format"],
        files=meta["files"],
        tokens=Tokens(columns["input_ids"], columns["trained"]),
        documents=documents,
        read=meta["read"],
        failed=failed,
        checked=meta["checked"],
        notes=reported(meta["notes"]),
        fingerprint=_fingerprint(columns),
        cached=cached,
    )


def _fingerprint(columns: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ("digest", "row", "file"):
        digest.update(columns[name].data)
    digest.update(zlib.crc32(columns["trained"].data).to_bytes(4, "big"))
    return digest.hexdigest()[:32]
