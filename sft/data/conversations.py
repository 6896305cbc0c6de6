"""The conversations behind encoded rows, read again from their source to prompt the model for generation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sft.data.documents import Rows
from sft.data.formats import RowError, recognise
from sft.data.formats.converter import HEAD
from sft.data.readers import read_source
from sft.data.source import Source
from sft.data.spec import Dataset


def evaluation_conversations(
    dataset: Dataset, evaluation: Mapping[str, Rows], limit: int | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The conversations from which evaluation rows were made, in the rows' order.

    Args:
        dataset: the config node they were prepared from.
        evaluation: rows by source, as `prepare` gives them.
        limit: at most so many of each source.
    """
    sources = dataset.eval_sources or dataset.sources
    kind = "eval_sources" if dataset.eval_sources else "sources"
    return {
        name: conversations_of(rows, sources[name], name, f"dataset.{kind}.{name}", dataset, limit)
        for name, rows in evaluation.items()
    }


def conversations_of(
    rows: Rows, source: Source, name: str, where: str, dataset: Dataset, limit: int | None = None
) -> list[dict[str, Any]]:
    """The conversations of one source's rows; reading stops at the last one wanted.

    Args:
        rows: all of this source.
        where: the source's key in the config, for errors.
        dataset: says how rows become conversations.
        limit: at most so many, the rows' first ones.
    """
    documents, files = rows.documents, rows.files[0]
    places = zip(documents.file.tolist(), documents.row.tolist(), strict=True)
    wanted = list(dict.fromkeys((files[file], row) for file, row in places))[:limit]
    missing = set(wanted)
    found: dict[Any, dict[str, Any]] = {}
    pending: list[tuple[Any, Any]] = []
    converter = None
    how: dict[str, Any] = {"use_text_column": dataset.use_text_column, "consecutive": dataset.consecutive}
    for place, row in read_source(source, name, where):
        pending.append((place, row))
        if converter is None and len(pending) < HEAD:
            continue
        converter = converter or recognise(source, [item for _, item in pending], where, **how)
        _take(pending, converter, missing, found)
        if not missing:
            break
    if pending:
        converter = converter or recognise(source, [item for _, item in pending], where, **how)
        _take(pending, converter, missing, found)
    return [found[key] for key in wanted if key in found]


def common_system(conversations: Iterable[Mapping[str, Any]]) -> str | None:
    """The system message that all conversations share; None where they differ or one has none."""
    found = set()
    for conversation in conversations:
        first: Mapping[str, Any] = next(iter(conversation.get("messages") or []), {})
        found.add(first.get("content") if first.get("role") == "system" else None)
    return found.pop() or None if len(found) == 1 else None


def _take(pending: list[tuple[Any, Any]], converter: Any, missing: set[Any], found: dict[Any, Any]) -> None:
    for place, row in pending:
        key = (place.file, place.row)
        if key in missing:
            try:
                found[key] = converter.to_conversation(row)
            except RowError:
                continue
            missing.discard(key)
    pending.clear()
