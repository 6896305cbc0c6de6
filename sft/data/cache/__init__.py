"""The cache of tokenized rows: one folder per entry, named by a digest of everything its rows depend on.

An entry whose checksums fail is made again, and the longest unused ones are removed where they take too much room.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from sft.config.paths import cache_dir
from sft.data.cache.entries import META, Entry, Writer, read_entry
from sft.data.cache.keys import key_of
from sft.run.disk.atomic import replacing
from sft.run.disk.digest import sha256_of

log = logging.getLogger(__name__)

MEMO_FROM = 1 << 26  # the digest of files of 64 MiB and more is remembered
KEEP_BYTES = 20 << 30  # entries beyond this in sum are removed, the longest unused first
KEEP_SECONDS = 24 * 3600  # except those used within a day


def default_root() -> Path:
    """$SFT_CACHE/data, or ~/.cache/sft/data."""
    return cache_dir() / "data"


class Cache:
    """Entries below one folder.

    Args:
        root: the folder; None for the default one.
        enabled: false stores nothing and finds nothing; entries are kept in a temporary folder while they are used.
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
            entry = read_entry(folder)
            os.utime(folder / META)  # when it was last used
            return entry
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the cache entry %s is damaged (%s) and is rebuilt", key, error)
            return None

    @contextlib.contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Lock the key: of several processes that want one entry, one makes it while the others wait and then read
        it."""
        if not self.enabled:
            yield
            return
        lock = FileLock(self.root / f"{key}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            log.info("another run is tokenizing the same rows; waiting for it")
            lock.acquire()
        except OSError:  # a file system without locks: the entry may be made twice; the rename is still safe
            log.debug("no locks for %s", lock.lock_file)
        try:
            yield
        finally:
            lock.release()

    def writer(self, key: str) -> Writer:
        """A writer of this key's entry; with the cache off, of one that disappears with its columns."""
        if self.enabled:
            return Writer(Path(tempfile.mkdtemp(prefix=f".{key}.", dir=self.root)), self.root / key)
        return Writer(Path(tempfile.mkdtemp(prefix="sft-rows-")), None)

    def file_digest(self, path: Path) -> str:
        """SHA-256 of a file's content. A large file's is remembered beside its size, inode and times of change."""
        stat = path.stat()
        if not self.enabled or stat.st_size < MEMO_FROM:
            return sha256_of(path)
        facts = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]
        memo = self.root / "digests" / f"{key_of({'path': facts[0]})}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(memo.read_text())
            if known["facts"] == facts:
                return str(known["sha256"])
        began = time.time()
        digest = sha256_of(path)
        if began - stat.st_mtime > 5 and path.stat().st_mtime_ns == stat.st_mtime_ns:  # not being written just now
            with replacing(memo) as temporary:
                temporary.write_text(json.dumps({"facts": facts, "sha256": digest}), encoding="utf-8")
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
