"""A loss or gradient that is no number stops the run, with the rows of the batch named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class NonFinite(RuntimeError):
    """A NaN or an infinity in the loss or the gradient.

    Attributes:
        what: "loss" or "gradient".
        rows: the batch's rows, as text.
        step: the optimizer step being made, from 1.
    """

    def __init__(self, what: str, rows: str, step: int) -> None:
        self.what, self.rows, self.step = what, rows, step
        at = f" on {rows}" if rows else ""
        super().__init__(
            f"the {what} of step {step} is not finite{at}; a lower trainer.learning_rate, trainer.max_grad_norm=1.0 or "
            "model.dtype=float32 often mends it"
        )


def describe(about: Mapping[str, Any]) -> str:
    """A batch's rows as "source rows 3, 7; other rows 1"."""
    by_source: dict[str, list[str]] = {}
    for source, row in zip(about.get("source", ()), about.get("row", ()), strict=False):
        by_source.setdefault(str(source), []).append(str(row))
    return "; ".join(f"{source} rows {', '.join(rows)}" for source, rows in by_source.items())
