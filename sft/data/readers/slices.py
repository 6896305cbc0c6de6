"""`train[:100]`, `test[50%:]`: a split's name and a slice of its rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from sft.config.errors import UserError

T = TypeVar("T")
_SPLIT = re.compile(r"\s*([\w.-]*)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*")


@dataclass(frozen=True)
class Slice:
    """Bounds of a slice of rows, each a number (`100`, `-50`), a percentage (`10%`), or None."""

    start: str | None = None
    stop: str | None = None

    def of(self, rows: Iterable[T]) -> Iterator[T]:
        """The slice of the rows; only bounds from the end, or in percent, need all of them in memory."""
        if self.start is None and self.stop is None:
            return iter(rows)
        if all(bound is None or bound.isdigit() for bound in (self.start, self.stop)):
            return islice(rows, *(None if bound is None else int(bound) for bound in (self.start, self.stop)))
        everything = list(rows)
        return iter(everything[_index(self.start, len(everything)) : _index(self.stop, len(everything))])


def parse_split(split: str | None, where: str) -> tuple[str | None, Slice]:
    """A split's name (None where none is given) and slice. Raises UserError for anything else."""
    if not split:
        return None, Slice()
    match = _SPLIT.fullmatch(split)
    if not match:
        raise UserError(
            f"{split!r} is not a split", where=where, remedy="a name, or a part of it: train[:100], test[50%:]"
        )
    return match[1] or None, Slice(match[2], match[3])


def _index(bound: str | None, count: int) -> int | None:
    if bound is None:
        return None
    return round(int(bound[:-1]) * count / 100) if bound.endswith("%") else int(bound)
