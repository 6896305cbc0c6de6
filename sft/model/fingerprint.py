"""A digest of a model's weights from a few kilobytes of them, to recognise the base of an adapter."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

TENSORS, BYTES = 32, 4096  # number of tensors, and bytes of each, that are read


def weights_fingerprint(name: str, revision: str | None = None) -> str | None:
    """Digest the names, types and shapes of a model's tensors, and the first bytes of some of them.

    The digest does not depend on the sharding; nothing is loaded, so it takes milliseconds.

    Args:
        name: a directory, or the hub id of a model in the cache.
        revision: of the hub repository.

    Returns:
        None where there is no safetensors file.
    """
    directory = _directory(name, revision)
    files = sorted(directory.glob("*.safetensors")) if directory else []
    tensors = {key: (path, *facts) for path in files for key, facts in _header(path).items()}
    if not tensors:
        return None
    digest = hashlib.sha256()
    names = sorted(tensors)
    looked_into = set(names[:: max(1, len(names) // TENSORS)])
    for key in names:
        path, dtype, shape, begin, end = tensors[key]
        digest.update(json.dumps([key, dtype, shape]).encode())
        if key in looked_into:
            digest.update(_bytes(path, begin, min(BYTES, end - begin)))
    return digest.hexdigest()[:32]


def _directory(name: str, revision: str | None) -> Path | None:
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision or "main")
    return Path(found).parent if isinstance(found, str) else None


def _header(path: Path) -> dict[str, tuple[str, list[int], int, int]]:
    """Type, shape and offset of each tensor; {} for a file that is not safetensors."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            return {}
        start = 8 + size
        try:
            header: dict[str, Any] = json.loads(file.read(size))
            return {
                key: (
                    facts["dtype"],
                    facts["shape"],
                    start + facts["data_offsets"][0],
                    start + facts["data_offsets"][1],
                )
                for key, facts in header.items()
                if key != "__metadata__"
            }
        except (ValueError, MemoryError, RecursionError, TypeError, AttributeError, LookupError):
            return {}


def _bytes(path: Path, begin: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(count)
