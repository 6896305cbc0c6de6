"""Content of rows that was not read, or not read verbatim: counted for the data report.

Code that converts a row calls `note` where it finds such content; the caller collects the notes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

MOST = 100  # different details per kind that are counted by name, because keys of a row may be data
OTHERS = "others"
TITLES = {  # titles of the kinds, as printed
    "unread_columns": "columns not read",
    "unread_message_keys": "message keys not read",
    "merged_messages": "messages merged into one turn",
    "decoded_arguments": "arguments encoded as JSON twice, decoded",
    "changed_contents": "contents changed by the chat template (template=chatml keeps them)",
    "untrained_edges": "not trained, because a token is trained completely or not at all",
    "control_tokens_as_text": "control tokens in contents, tokenized as text",
    "tags_in_contents": "tags of the chat template in contents, tokenized as such",
    "reasoning_twice": "reasoning given twice, kept once",
}

_found: ContextVar[list[tuple[str, str]] | None] = ContextVar("notes", default=None)


def note(kind: str, detail: str) -> None:
    """Note something about the row that is being converted; does nothing where notes are not collected.

    Args:
        kind: a key of TITLES, or another name in lower case with underscores.
        detail: what it is counted by, for example the name of a key.
    """
    found = _found.get()
    if found is not None:
        found.append((kind, detail))


@contextmanager
def collected() -> Iterator[list[tuple[str, str]]]:
    """The (kind, detail) pairs noted within the block. Clear the list between rows."""
    found: list[tuple[str, str]] = []
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)


class Notes:
    """Notes of many rows: {kind: {detail: [how often, place of the first]}}."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, list[Any]]] = {}

    def add(self, kind: str, detail: str, place: Any, count: int = 1) -> None:
        """Count a detail."""
        details = self.counts.setdefault(kind, {})
        if detail not in details and len(details) >= MOST:
            detail = OTHERS
        details.setdefault(detail, [0, place])[0] += count

    def merge(self, other: Notes, places: Sequence[Any]) -> None:
        """Add notes of later rows, whose places are indices of `places`."""
        for kind, details in other.counts.items():
            for detail, (count, place) in details.items():
                self.add(kind, detail, places[place], count)


def reported(counts: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, dict[str, Any]]:
    """Counts as data_report.json has them, most frequent details first."""
    return {
        kind: {
            detail: {"count": count, "first": place}
            for detail, (count, place) in sorted(details.items(), key=lambda item: -item[1][0])
        }
        for kind, details in counts.items()
    }


def lines(notes: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """One line a kind, for people: `message keys not read: sparkle (3, first in a.jsonl row 1)`."""
    return [
        f"{TITLES.get(kind, kind.replace('_', ' '))}: "
        + ", ".join(f"{detail} ({each['count']:,}, first in {each['first']})" for detail, each in details.items())
        for kind, details in notes.items()
    ]
