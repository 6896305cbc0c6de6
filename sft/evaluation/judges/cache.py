"""A judge's replies on disk: one line of JSONL each, written before the next call is made.

A process that is killed while writing leaves an incomplete line, which the next start ignores.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from sft.config.paths import cache_dir, expanded
from sft.config.resolvers import plain_name
from sft.run.disk.errors import storage_errors
from sft.run.jsonable import read_jsonl
from sft.safety.secrets import redact


def digest(*parts: Any) -> str:
    """A digest of JSON-able facts."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


class ReplyCache:
    """The replies of one judge with one set of settings.

    Args:
        name: the judge's.
        settings: what else its replies depend on.
        directory: where they are kept; None for the user's cache.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], directory: str | Path | None = None) -> None:
        self.identity = digest(name, settings)
        folder = expanded(directory) if directory else cache_dir() / "judge"
        self.path = folder / f"{plain_name(name)[-60:]}-{self.identity[:12]}.jsonl"
        self._lock = threading.Lock()
        self._said = _read(self.path)

    def __len__(self) -> int:
        return len(self._said)

    def key(self, prompt: str, schema: Mapping[str, Any] | None) -> str:
        """The key of a question."""
        return digest(self.identity, prompt, schema)

    def get(self, key: str) -> str | None:
        """The judge's reply, None where it was not asked."""
        with self._lock:
            return self._said.get(key)

    def put(self, key: str, text: str) -> None:
        """Store a reply; it is on disk when this returns.

        Raises:
            StorageError: it cannot be written.
        """
        line = redact(json.dumps({"key": key, "text": text}, ensure_ascii=False)) + "\n"
        with self._lock, storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock"), mode=0o600):  # another process may use the same judge
                descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
                try:
                    _write_line(descriptor, line.encode())
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            self._said[key] = text


def _write_line(descriptor: int, line: bytes) -> None:
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        line = b"\n" + line  # after an incomplete line of a killed process
    while line:
        line = line[os.write(descriptor, line) :]


def _read(path: Path) -> dict[str, str]:
    try:
        entries = read_jsonl(path)
    except OSError:
        return {}
    return {str(entry["key"]): str(entry["text"]) for entry in entries if {"key", "text"} <= entry.keys()}
