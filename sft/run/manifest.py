"""A checkpoint's manifest: the size and checksum of each of its files, and whether they still are what it says."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sft.run.disk.digest import sha256_of
from sft.system.processes import usable_cores

MANIFEST = "manifest.json"
_PICKLED = {".pt", ".pth", ".bin", ".pkl", ".ckpt"}


def write_manifest(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of the files that are there, with further facts (JSON values)."""
    manifest = {**facts, "files": checksums(checkpoint)}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def problem(checkpoint: Path, *, deep: bool = True) -> str | None:
    """Why a checkpoint is incomplete, or None when it is complete.

    Args:
        deep: compare checksums; otherwise only the files' presence and sizes, without reading them.
    """
    manifest = read_manifest(checkpoint)
    if manifest is None:
        return f"it has no readable {MANIFEST}"
    files: dict[str, dict[str, Any]] = manifest["files"]
    for path, facts in files.items():
        try:
            size = (checkpoint / path).stat().st_size
        except OSError:
            return f"{path} is missing"
        if size != facts["bytes"]:
            return f"{path} has {size} bytes where {facts['bytes']} were written"
    unknown = [path for path in _relative_files(checkpoint) if path not in files and Path(path).suffix in _PICKLED]
    if unknown:
        return f"{unknown[0]} is not in its {MANIFEST}"
    if deep:
        found = checksums(checkpoint, files)
        for path, facts in files.items():
            if found[path]["sha256"] != facts["sha256"]:
                return f"{path} does not have the checksum it was written with"
    return None


def complete(checkpoint: Path, *, deep: bool = True) -> bool:
    """Whether every file is as it was written. Nothing of a checkpoint may be unpickled unless this is true."""
    return problem(checkpoint, deep=deep) is None


def read_manifest(checkpoint: Path) -> dict[str, Any] | None:
    """The manifest's content, or None where it is missing, damaged, or names files outside the checkpoint."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        sound = isinstance(files, dict) and all(
            isinstance(facts["sha256"], str) and isinstance(facts["bytes"], int) and not _leads_out(path)
            for path, facts in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return manifest if sound and files else None


def checksums(directory: Path, names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """``{relative path: {"bytes", "sha256"}}`` of the files below a directory, but for the manifest; read in parallel."""
    paths = sorted(names) if names is not None else _relative_files(directory)
    with ThreadPoolExecutor(max_workers=min(8, usable_cores())) as pool:
        digests = list(pool.map(lambda path: sha256_of(directory / path), paths))
    return {
        path: {"bytes": (directory / path).stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }


def _relative_files(directory: Path) -> list[str]:
    files = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in files if path != MANIFEST)


def _leads_out(path: str) -> bool:
    return os.path.isabs(path) or ".." in Path(path).parts
