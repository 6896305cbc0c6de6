"""The data report in words: what was read of each source, what was not, and what was changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sft.data.report.notes import lines as note_lines

LEFT_OUT, NOT_READ, CHANGED = "left out", "not read", "changed"


def account(report: Mapping[str, Any]) -> list[str]:
    """For each source its name, and below it what was read, left out, not read and changed."""
    lines = []
    for name, source in _sources(report).items():
        rows = "" if source["rows"] == source["converted"] else f", {source['rows']:,} rows of tokens"
        lines += [name, f"  read: {source['converted']:,} of {source['read']:,} rows, as {source['format']}{rows}"]
        told = list(_told(source, report["max_length"]))
        for kind in (LEFT_OUT, NOT_READ, CHANGED):
            texts = [text for each, text in told if each == kind]
            texts = [text.replace(f" {NOT_READ}:", ":", 1) for text in texts] or ["nothing"]
            lines += [f"  {kind}: {text}" for text in texts]
    return lines


def summary(report: Mapping[str, Any]) -> list[str]:
    """What was left out, not read and changed, one line each with its source, for the log."""
    return [
        f"{name}: {text}"
        for name, source in _sources(report).items()
        for _, text in _told(source, report["max_length"])
    ]


def _sources(report: Mapping[str, Any]) -> dict[str, Any]:
    return {**report["sources"], **report["eval_sources"]}


def _told(source: Mapping[str, Any], max_length: int) -> Iterator[tuple[str, str]]:
    """(LEFT_OUT, NOT_READ or CHANGED, a line) for everything to report about a source, most rows first."""
    for reason, count in sorted(source["dropped"].items(), key=lambda item: -item[1]):
        yield LEFT_OUT, f"{count:,} dropped: {reason} ({_short(source['dropped_rows'][reason])})"
    if source["truncated"]:
        yield CHANGED, f"{source['truncated']:,} cut at max_length={max_length} ({_short(source['truncated_rows'])})"
    for kind, details in source["notes"].items():
        (line,) = note_lines({kind: details})
        yield NOT_READ if kind.startswith("unread") else CHANGED, line


def _short(places: Mapping[str, str], most: int = 60) -> str:
    text = "; ".join(f"{file} row {rows}" for file, rows in places.items())
    return text if len(text) <= most else f"{text[: most - 4].rsplit(',', 1)[0]}, ..."
