"""The result of preparing a dataset's rows, and its counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class MakerResult:
    """One record to write, or rows left out.

    Attributes:
        record: what is written; None where rows are left out.
        rows: how many of the input's rows this accounts for.
        reason: why they are left out.
        where: the place of the row, where it is one.
    """

    record: dict[str, Any] | None
    rows: int = 1
    reason: str = ""
    where: str = ""


@dataclass
class Counts:
    """Counts in which every row of the input is accounted for: `read == used + sum(left_out.values())`.

    Attributes:
        source: the maker's name.
        output: the file written.
        read: rows of the input.
        used: rows that are in what was written.
        written: records written.
        left_out: rows that are not, by reason.
        examples: the first place of each reason.
    """

    source: str
    output: str
    read: int = 0
    used: int = 0
    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, made: MakerResult) -> None:
        """Count one of a maker's results."""
        self.read += made.rows
        if made.record is not None:
            self.used += made.rows
            self.written += 1
            return
        self.left_out[made.reason] += made.rows
        if made.where:
            self.examples.setdefault(made.reason, made.where)

    def merge(self, other: Counts) -> None:
        """Add another source's counts, its reasons under its name."""
        self.read, self.used, self.written = (
            self.read + other.read,
            self.used + other.used,
            self.written + other.written,
        )
        for reason, rows in other.left_out.items():
            self.left_out[f"{other.source}: {reason}"] += rows
        self.examples.update({f"{other.source}: {reason}": where for reason, where in other.examples.items()})

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON-able values."""
        return {**asdict(self), "left_out": dict(self.left_out)}

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.written} records of {self.used} rows, {self.read} read -> {self.output}"]
        for reason, rows in self.left_out.most_common():
            example = f" (first: {self.examples[reason]})" if reason in self.examples else ""
            lines.append(f"  left out {rows}: {reason}{example}")
        return "\n".join(lines)
