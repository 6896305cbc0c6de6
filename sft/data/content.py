"""What a source's tokens depend on: the facts that go into their cache key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sft.data.cache import Cache
from sft.data.cache.keys import code_version
from sft.data.readers import files_of
from sft.data.readers.slices import parse_split
from sft.data.source import Source, node_of


@dataclass(frozen=True)
class Options:
    """The settings of `dataset` that apply to every source and affect its tokens."""

    use_text_column: bool = False
    check_rows: int = 64
    num_proc: int | None = None
    consecutive: Literal["refuse", "merge"] = "refuse"


def content_of(source: Source, cache: Cache, where: str) -> Any:
    """What a source's rows depend on, as JSON; None where only the rows themselves can tell.

    Files are identified by their content, a hub dataset by its files in the hub's cache, a streamed one by its commit.
    Code outside this package (a generator, a `convert`) may depend on anything, so its rows are hashed.
    """
    if any(node and not _ours(node) for node in (source.convert, source.generator)):
        return None
    if source.generator:
        return "generator"  # its node is among the facts, its code is covered by the package's digest
    if source.path:
        split, _ = parse_split(source.split, f"{where}.split")
        return [[file.label, file.kind, _digest(file.path, cache)] for file in files_of(source, where, split)]
    if source.streaming:
        return source.revision if re.fullmatch(r"[0-9a-f]{40}", source.revision or "") else None
    from sft.data.readers.hub import load_hub

    split, _ = parse_split(source.split, f"{where}.split")
    data = load_hub(source, split or "train", where)
    files = [cache.file_digest(Path(file["filename"])) for file in data.cache_files]
    return [files, len(data)] if files else None  # held in memory: only its rows can tell


def facts_of(source: Source, options: Options) -> dict[str, Any]:
    """What the tokens depend on beside the rows' content and the encoder; weights do not count."""
    node = node_of(source)
    for key in ("weight", "path"):  # files are identified by content and label
        node.pop(key)
    if callable(node["generator"]) or callable(node["convert"]):
        node["generator"] = node["convert"] = None  # the user's objects: their rows are hashed
    facts = {"source": node, "text": options.use_text_column, "check": options.check_rows}
    facts["consecutive"] = options.consecutive
    return {**facts, "code": code_version()}


def _ours(node: Any) -> bool:
    """Whether a node's result depends only on the node and the package's code; makers read files and the hub."""
    target = str(node.get("_target_", "")) if isinstance(node, Mapping) else ""
    return target.startswith("sft.") and not target.startswith("sft.data.makers.")


def _digest(path: Path, cache: Cache) -> Any:
    if path.is_dir():
        return [[file.name, cache.file_digest(file)] for file in sorted(path.iterdir()) if file.is_file()]
    return cache.file_digest(path)
