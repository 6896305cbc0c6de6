"""An entry of the cache: flat columns, one raw little-endian file each, and meta.json with their checksums.

It is written under a temporary name and renamed when complete, so that no reader sees half of it. Columns are
memory-mapped: jobs of a sweep share the pages, and rows need not fit in memory.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from sft.data.cache.keys import key_of

META = "meta.json"
BLOCK = 1 << 22  # bytes read at a time


@dataclass(frozen=True)
class Entry:
    """What the cache gives back: columns (memory-mapped, read only) and the facts stored beside them."""

    columns: dict[str, np.ndarray]
    meta: dict[str, Any]


class Writer:
    """Columns that grow in chunks and become an entry at `commit`; leaving the `with` block earlier discards them."""

    def __init__(self, folder: Path, final: Path | None) -> None:
        self.folder, self.final = folder, final
        self._files: dict[str, Any] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._done = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        if not self._done:
            shutil.rmtree(self.folder, ignore_errors=True)

    def append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Add to each column; a column has one dtype throughout."""
        for name, values in columns.items():
            if name not in self._files:
                self._files[name] = (self.folder / f"{name}.bin").open("wb")
                self._facts[name] = {"dtype": values.dtype.newbyteorder("<").str, "count": 0, "crc": 0}
            facts = self._facts[name]
            data = np.ascontiguousarray(values, dtype=facts["dtype"]).tobytes()
            self._files[name].write(data)
            facts["count"] += len(values)
            facts["crc"] = zlib.crc32(data, facts["crc"])

    def commit(self, meta: Mapping[str, Any]) -> Entry:
        """Store the entry, in place of any other of its key, and give it back."""
        for file in self._files.values():
            file.close()
        body = {"columns": self._facts, "meta": dict(meta)}
        (self.folder / META).write_text(json.dumps({"digest": key_of(body), "body": body}), encoding="utf-8")
        self._done = True
        if self.final is None:
            entry = read_entry(self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)  # mapped files live on until the last map is gone
            return entry
        if self.final.exists():
            shutil.rmtree(self.final, ignore_errors=True)
        try:
            self.folder.rename(self.final)
        except OSError:  # another process stored the same entry first
            shutil.rmtree(self.folder, ignore_errors=True)
        return read_entry(self.final)


def read_entry(folder: Path) -> Entry:
    """Map an entry's columns and compare their checksums. Raises ValueError, KeyError or OSError when damaged."""
    document = json.loads((folder / META).read_text())
    body = document["body"]
    if document["digest"] != key_of(body):
        raise ValueError(f"{META} does not match its digest")
    columns = {}
    for name, facts in body["columns"].items():
        path, dtype = folder / f"{name}.bin", np.dtype(facts["dtype"])
        if path.stat().st_size != facts["count"] * dtype.itemsize:
            raise ValueError(f"{path.name} has another size")
        empty = facts["count"] == 0  # an empty file cannot be mapped
        column = np.empty(0, dtype) if empty else np.memmap(path, dtype=dtype, mode="r")
        if _crc(column) != facts["crc"]:
            raise ValueError(f"{path.name} does not match its checksum")
        columns[name] = column
    return Entry(columns, body["meta"])


def _crc(column: np.ndarray) -> int:
    if not len(column):
        return 0
    data, crc = memoryview(column.view(np.uint8).data), 0
    for begin in range(0, len(data), BLOCK):
        crc = zlib.crc32(data[begin : begin + BLOCK], crc)
    return crc
