"""The files of a source's `path`: one file, a directory, a glob, or a list of them."""

from __future__ import annotations

import glob
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from sft.config.errors import UserError
from sft.config.paths import expanded, nearest_path
from sft.data.source import Source

log = logging.getLogger(__name__)

KINDS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = (".gz", ".zst")
READABLE = ", ".join(KINDS) + " (JSON, CSV also .gz and .zst), or a directory of save_to_disk"
# files beside the rows in a dataset's directory
_NOT_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}


@dataclass(frozen=True)
class File:
    """One file of rows.

    Attributes:
        path: where it lies.
        kind: how it is read: json, jsonl, csv, tsv, parquet, arrow, or saved (a directory of save_to_disk).
        compression: .gz, .zst or None.
        label: its name in the places of rows.
    """

    path: Path
    kind: str
    compression: str | None
    label: str


def files_of(source: Source, where: str, split: str | None = None) -> list[File]:
    """The files of a source's path, in a fixed order.

    A directory is searched recursively; a `split` selects the files named after it, and without one those of test and
    validation splits are left out where there are others.

    Raises:
        UserError: nothing exists there, or nothing that can be read.
    """
    patterns = [source.path] if isinstance(source.path, str) else list(source.path or [])
    found: list[Path] = []
    for pattern in patterns:
        found += _expand(pattern, split, f"{where}.path")
    once: dict[str, Path] = {}  # links may lead to one file several times, or in circles
    for path in found:
        once.setdefault(os.path.realpath(path), path)
    found = list(once.values())
    labels = _labels(found)
    return [_file(path, split, label, f"{where}.path") for path, label in zip(found, labels, strict=True)]


def _expand(pattern: str, split: str | None, where: str) -> list[Path]:
    if not isinstance(pattern, str) or not pattern:
        raise UserError(f"{pattern!r} is not a path", where=where)
    if re.match(r"[a-z]+://", pattern):
        raise UserError(f"{pattern} is an address, not a file", where=where, remedy="download it, or use name=HUB_ID")
    if "\0" in pattern:
        raise UserError(f"{pattern!r} is not a path", where=where)
    path = expanded(pattern)
    if path.is_dir():
        return [path] if is_saved(path) else _by_split(path, _in_directory(path, where), split, where)
    if path.exists():
        if not path.is_file():
            raise UserError(f"{path} is not a regular file", where=where, remedy="a file, a directory, or a glob")
        if split not in (None, "train") and _split_of(Path(path.name)) != _SPLIT_WORDS.get(str(split), split):
            raise UserError(f"{path} is one file and has no split {split}", where=where.replace(".path", ".split"))
        return [path]
    if glob.has_magic(pattern):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        matches = [match for match in matches if is_saved(match) or (match.is_file() and _suffixes(match)[0] in KINDS)]
        if not matches:
            raise UserError(f"no readable file matches {pattern}", where=where, remedy=f"readable are {READABLE}")
        return matches if split is None else _by_split(path, matches, split, where)
    if path.is_symlink():
        raise UserError(f"{pattern} is a broken link", where=where)
    raise UserError(f"{pattern} does not exist", where=where, remedy=nearest_path(path))


def is_saved(path: Path) -> bool:
    """Whether a directory was written by datasets' save_to_disk."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def _in_directory(directory: Path, where: str) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        found += [
            Path(folder, name)
            for name in sorted(names)
            if _suffixes(Path(name))[0] in KINDS and not name.startswith(".") and name not in _NOT_ROWS
            if os.path.isfile(os.path.join(folder, name))  # not a pipe, on which reading would block
        ]
    if not found:
        raise UserError(f"nothing readable in {directory}", where=where, remedy=f"readable are {READABLE}")
    return found


def _by_split(root: Path, files: list[Path], split: str | None, where: str) -> list[Path]:
    splits = {
        path: _split_of(path.relative_to(root) if path.is_relative_to(root) else Path(path.name)) for path in files
    }
    if split is None:
        chosen = [path for path in files if splits[path] in (None, "train")] or files
        if left := [path.name for path in files if path not in chosen]:
            log.info(
                "%s: left out %s, which are not training files by name; name a split to read them",
                root,
                ", ".join(left),
            )
        return chosen
    wanted = _SPLIT_WORDS.get(split, split)
    chosen = [path for path in files if splits[path] == wanted or split in (path.name.split(".")[0], path.parent.name)]
    if not chosen and wanted == "train":
        chosen = [path for path in files if splits[path] is None]
    if not chosen:
        there = sorted({found for found in splits.values() if found}) or ["none are named"]
        raise UserError(
            f"no file of {root} belongs to the split {split}", where=where, remedy=f"splits there: {', '.join(there)}"
        )
    return chosen


def _split_of(path: Path) -> str | None:
    """The split in the names of a file or its folders: `data/test-00001.parquet`; the last such name wins."""
    for part in reversed((*path.parent.parts, path.name.split(".")[0])):
        for word in re.split(r"[^a-zA-Z]+", part):
            if word.lower() in _SPLIT_WORDS:
                return _SPLIT_WORDS[word.lower()]
    return None


def _suffixes(path: Path) -> tuple[str, str | None]:
    """A file's suffix in lower case, and that of its compression."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        return Path(path.stem).suffix.lower(), suffix
    return suffix, None


def _file(path: Path, split: str | None, label: str, where: str) -> File:
    if path.is_dir():
        saved = path / split if split and (path / "dataset_dict.json").is_file() else path
        return File(saved, "saved", None, label if saved == path else f"{label}/{split}")
    suffix, compression = _suffixes(path)
    if suffix not in KINDS or (compression and KINDS[suffix] in ("parquet", "arrow")):
        raise UserError(f"{path} has no file type that can be read", where=where, remedy=f"readable are {READABLE}")
    return File(path, KINDS[suffix], compression, label)


def _labels(paths: list[Path]) -> list[str]:
    """Each file's name; relative to their common folder where there are several."""
    if len({path.name for path in paths}) == len(paths):
        return [path.name for path in paths]
    common = os.path.commonpath([path.absolute() for path in paths])
    return [str(path.absolute().relative_to(common)) for path in paths]
