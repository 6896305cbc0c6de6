"""The result of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        directory: the run directory.
        metrics: what metrics.json holds.
        objective: name of the metric that a sweep or a leaderboard sorts by.
        value: that metric.
    """

    directory: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    objective: str = "eval_loss"
    value: float | None = None

    @property
    def adapter(self) -> Path:
        """The trained adapter; a full fine-tune has `directory / "model"` instead."""
        return self.directory / "adapter"

    def __str__(self) -> str:
        figures = [self.objective, "eval_exact_match", "train_loss", "steps"]
        shown = ", ".join(
            f"{key}={_short(self.metrics[key])}" for key in dict.fromkeys(figures) if self.metrics.get(key) is not None
        )
        return f"{self.directory}  ({shown})"


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
