"""When to save a checkpoint and how many to keep."""

from __future__ import annotations

from typing import Any

from sft.config.checks.schedules import best_model, checkpoint
from sft.training.callbacks.base import RunCallback


class Checkpoint(RunCallback):
    """Sets when checkpoints are saved. They are written atomically, and the last good one is never deleted.

    Args:
        every: a number of steps, a fraction of all steps below 1, or "epoch"; None leaves it to trainer.save_strategy.
        limit: how many to keep, always including the best and the newest; None leaves it to trainer.save_total_limit.
        best_only: save only after the best evaluation so far. A killed run then resumes from the best checkpoint.
    """

    role = "saves"

    def __init__(self, every: float | str | None = None, limit: int | None = None, best_only: bool = False) -> None:
        self.every, self.limit, self.best_only = every, limit, best_only

    def arguments(self) -> dict[str, Any]:
        """save_strategy, save_steps and save_total_limit, if set here."""
        return checkpoint(self.every, self.limit, self.best_only, self.objective, self.direction)


class BestModel(RunCallback):
    """Loads the best checkpoint when training ends, so that the saved adapter is the best one and not the last.

    Args:
        metric_for_best_model: an evaluation metric; None is the run's objective.
        greater_is_better: None follows the run's direction, or the metric's name: a lower loss is better.
    """

    role = "loads_best"
    figure_argument = "metric_for_best_model"

    def __init__(self, metric_for_best_model: str | None = None, greater_is_better: bool | None = None) -> None:
        self.metric_for_best_model, self.greater_is_better = metric_for_best_model, greater_is_better

    def arguments(self) -> dict[str, Any]:
        """load_best_model_at_end, metric_for_best_model and greater_is_better."""
        return best_model(self.metric_for_best_model, self.greater_is_better, self.objective, self.direction)
