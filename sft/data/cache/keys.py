"""What cached rows are found by: digests of facts, and of the code that the rows rest on."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def key_of(parts: Mapping[str, Any]) -> str:
    """A digest of JSON-able facts, the same whatever order their keys have."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


@lru_cache(maxsize=1)
def code_version() -> str:
    """A digest of the code that turns rows into tokens, and of the libraries' versions it rests on."""
    package = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for file in sorted([*(package / "data").rglob("*"), *(package / "template").rglob("*")]):
        if file.is_file() and file.suffix in (".py", ".jinja", ".json", ".txt", ".yaml"):
            digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes() + b"\0")
    for library in ("tokenizers", "transformers", "jinja2", "datasets", "pyarrow"):
        with contextlib.suppress(PackageNotFoundError):
            digest.update(f"{library}={version(library)}".encode())
    return digest.hexdigest()
