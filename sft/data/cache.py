"""The cache of tokenized rows: one folder an entry, named by a digest of everything that its rows follow from.

An entry holds flat columns, one raw little-endian file each, and meta.json with their checksums. It is written under
a temporary name and renamed when complete, so that no reader sees half of it; an entry whose checksums fail is
rebuilt. Columns are memory-mapped: jobs of a sweep share the pages, and rows need not fit in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

log = logging.getLogger(__name__)

META = "meta.json"
BLOCK = 1 << 22  # bytes read at a time
MEMO_FROM = 1 << 26  # files of 64 MiB and more have their digest remembered
KEEP_BYTES = 20 << 30  # entries beyond this in sum are removed, the longest unused first
KEEP_SECONDS = 24 * 3600  # but none that was used within a day


@dataclass(frozen=True)
class Entry:
    """What the cache gives back: columns (memory-mapped, read only) and the facts stored beside them."""

    columns: dict[str, np.ndarray]
    meta: dict[str, Any]


def default_root() -> Path:
    """$SFT_CACHE/data, or ~/.cache/sft/data."""
    base = os.environ.get("SFT_CACHE")
    return (Path(base) if base else Path.home() / ".cache" / "sft") / "data"


def key_of(parts: Mapping[str, Any]) -> str:
    """A digest of JSON-able facts, the same whatever order their keys have."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


@lru_cache(maxsize=1)
def code_version() -> str:
    """A digest of the code that turns rows into tokens, and of the libraries' versions it rests on."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for file in sorted([*(package / "data").rglob("*"), *(package / "template").rglob("*")]):
        if file.is_file() and file.suffix in (".py", ".jinja", ".json", ".txt", ".yaml"):
            digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes() + b"\0")
    for library in ("tokenizers", "transformers", "jinja2", "datasets", "pyarrow"):
        with contextlib.suppress(PackageNotFoundError):
            digest.update(f"{library}={version(library)}".encode())
    return digest.hexdigest()


class Cache:
    """Entries below one folder.

    Args:
        root: the folder; None for the default one.
        enabled: false stores nothing and finds nothing; entries live in a temporary folder while they are used.
    """

    def __init__(self, root: Path | None = None, enabled: bool = True) -> None:
        self.root, self.enabled = root or default_root(), enabled
        if enabled:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.root):
                    pass
            except OSError as error:
                log.warning("no cache of tokenized rows: %s cannot be written (%s)", self.root, error)
                self.enabled = False

    def load(self, key: str) -> Entry | None:
        """The entry of this key, or None where there is none or its files are damaged."""
        folder = self.root / key
        if not self.enabled or not (folder / META).is_file():
            return None
        try:
            entry = _read(folder)
            os.utime(folder / META)  # when it was last used
            return entry
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the cache entry %s is damaged (%s) and is made again", key, error)
            return None

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Hold the key: of several processes that want one entry, one makes it and the others wait and read it."""
        if not self.enabled:
            yield
            return
        with (self.root / f"{key}.lock").open("w") as handle:
            _held.add(handle)
            try:
                _lock(handle)
                yield
            finally:
                _held.discard(handle)

    def writer(self, key: str) -> Writer:
        """A writer of this key's entry; with the cache off, of one that disappears with its columns."""
        if self.enabled:
            return Writer(Path(tempfile.mkdtemp(prefix=f".{key}.", dir=self.root)), self.root / key)
        return Writer(Path(tempfile.mkdtemp(prefix="sft-rows-")), None)

    def file_digest(self, path: Path) -> str:
        """SHA-256 of a file's content. A large file's is remembered beside its size, inode and times of change."""
        stat = path.stat()
        if not self.enabled or stat.st_size < MEMO_FROM:
            return _sha256(path)
        facts = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]
        memo = self.root / "digests" / f"{key_of({'path': facts[0]})}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(memo.read_text())
            if known["facts"] == facts:
                return str(known["sha256"])
        began = time.time()
        digest = _sha256(path)
        if began - stat.st_mtime > 5 and path.stat().st_mtime_ns == stat.st_mtime_ns:  # not being written just now
            memo.parent.mkdir(exist_ok=True)
            _write_atomically(memo, json.dumps({"facts": facts, "sha256": digest}))
        return digest

    def prune(self, keep_bytes: int = KEEP_BYTES, keep_seconds: float = KEEP_SECONDS) -> None:
        """Remove the longest unused entries until the rest takes at most `keep_bytes`, and what broken runs left."""
        if not self.enabled:
            return
        entries = []
        for folder in self.root.iterdir():
            with contextlib.suppress(OSError):
                used = (folder / META).stat().st_mtime if (folder / META).exists() else folder.stat().st_mtime
                if folder.is_dir() and folder.name != "digests":
                    size = sum(file.stat().st_size for file in folder.iterdir())
                    entries.append((used, size, folder))
        total = sum(size for _, size, _ in entries)
        for used, size, folder in sorted(entries, key=lambda each: each[0]):
            if time.time() - used < keep_seconds:
                return
            if total > keep_bytes or folder.name.startswith("."):
                shutil.rmtree(folder, ignore_errors=True)
                (self.root / f"{folder.name}.lock").unlink(missing_ok=True)
                total -= size


class Writer:
    """Columns that grow by chunks and become an entry at `commit`; leaving the `with` block before discards them."""

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
        _write_atomically(self.folder / META, json.dumps({"digest": key_of(body), "body": body}))
        self._done = True
        if self.final is None:
            entry = _read(self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)  # mapped files live on until the last map is gone
            return entry
        if self.final.exists():
            shutil.rmtree(self.final, ignore_errors=True)
        try:
            self.folder.rename(self.final)
        except OSError:  # another process stored the same entry first
            shutil.rmtree(self.folder, ignore_errors=True)
        return _read(self.final)


_held: set[IO[str]] = set()  # locks of this process


def _lock(handle: IO[str]) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("another run is making the same rows; waiting for them")
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:  # a file system without locks: the entry may be made twice, the rename stays safe
        log.debug("no locks for %s", handle.name)


def _close_locks() -> None:
    """In a forked child: or it would hold its parent's locks after the parent was killed."""
    for handle in _held:
        handle.close()
    _held.clear()


os.register_at_fork(after_in_child=_close_locks)


def _read(folder: Path) -> Entry:
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
        empty = facts["count"] == 0  # which cannot be mapped
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


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _write_atomically(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(name, path)
