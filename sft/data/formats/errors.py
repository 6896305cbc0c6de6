"""Why a row is not a conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any


class RowError(ValueError):
    """A row that is not a conversation.

    Args:
        kind: the reason without details ("unknown role"), by which the report counts.
        detail: the rest of the full reason (" 'narrator' in message 2").
        broken: false where the row was left out on purpose (a user's `convert` returned None, a mark on the row): it is
            counted, but not against `dataset.max_dropped`.
    """

    def __init__(self, kind: str, detail: str = "", *, broken: bool = True) -> None:
        self.kind, self.reason, self.broken = kind, f"{kind}{detail}", broken
        super().__init__(self.reason)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.kind, self.reason, self.broken))


def without_broken(convert: Callable[[Any], Any], rows: Iterable[Any]) -> Iterator[Any]:
    """What rows are converted to, those left out that are no conversation."""
    for row in rows:
        try:
            yield convert(row)
        except RowError:
            continue


def _rebuild(kind: str, reason: str, broken: bool) -> RowError:
    return RowError(kind, reason[len(kind) :], broken=broken)
