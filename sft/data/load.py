"""One source as tokens and labels: from the cache, or read, converted and encoded."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.data.cache import Cache
from sft.data.cache.entries import Entry
from sft.data.cache.keys import key_of
from sft.data.content import Options, content_of, facts_of
from sft.data.documents import Documents, Tokens
from sft.data.encode_source import Task, converted, encode_source
from sft.data.report.notes import reported
from sft.data.source import Source

if TYPE_CHECKING:
    from sft.data.labels.encoder import Encoder


@dataclass(frozen=True)
class Failed:
    """A row that gave no training row."""

    file: str
    row: int
    kind: str
    reason: str
    broken: bool


@dataclass(frozen=True)
class Loaded:
    """A source's tokens and what happened while making them.

    Args:
        name: the source's name.
        described: a description of it.
        format: the rows' format.
        files: names of its files; `documents.file` indexes them.
        tokens: all tokens.
        documents: all documents, of any length; `source` is 0 throughout.
        read: rows read.
        failed: those that became no conversation or could not be labelled.
        checked: rows whose mask was cross-checked.
        notes: {kind: {detail: {count, first}}}, content of rows that was not read, or read differently.
        fingerprint: digest of the tokens and of which are trained, whether cached or not.
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
        UserError: what the readers, the formats and the encoder's check refuse. A broken row is not an error here.
    """
    task = Task(name, source, where, encoder, options)
    content, conversations = content_of(source, cache, where), None
    if content is None:
        conversations = converted(task)
        content = conversations.digest()
    key = key_of({"rows": content, "encoder": encoder.fingerprint, **facts_of(source, options)})
    with cache.locked(key):
        entry = cache.load(key)
        cached = entry is not None
        if entry is None:
            entry = encode_source(task, conversations, cache, key)
    return _loaded(name, source, entry, cached)


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
