"""When to save a checkpoint and how many to keep."""

from __future__ import annotations

from typing import Any

from sft.config.errors import UserError
from sft.run.metrics import greater_is_better
from sft.training.callbacks.base import RunCallback
from sft.training.callbacks.schedule import schedule


class Checkpoint(RunCallback):
    """Sets when checkpoints are saved. They are complete or absent, and the last good one is never deleted.

    Args:
        every: a number of steps, a share of all steps below 1, or "epoch"; None leaves it to trainer.save_strategy.
        limit: how many to keep, the best and the newest always among them; None leaves it to trainer.save_total_limit.
        best_only: save only when an evaluation is the best so far. A killed run then resumes from the best one.
    """

    def __init__(self, every: float | str | None = None, limit: int | None = None, best_only: bool = False) -> None:
        self.every, self.limit, self.best_only = every, limit, best_only

    def arguments(self) -> dict[str, Any]:
        """save_strategy, save_steps and save_total_limit, as far as they are set here."""
        wanted = schedule(self.every, "save", "callbacks.checkpoint.every")
        if self.best_only:
            if self.every is not None:
                raise UserError(
                    "best_only saves at the best evaluations, every at fixed steps",
                    where="callbacks.checkpoint",
                    remedy="leave one of them out; callbacks.validation.every sets how often there is an evaluation",
                )
            wanted = {"save_strategy": "best", **_metric(self.objective, self.direction)}
        if self.limit is not None:
            if self.limit < 1:
                raise UserError(
                    f"at least one checkpoint must be kept, not {self.limit}",
                    where="callbacks.checkpoint.limit",
                    remedy="callbacks.checkpoint.limit=1, or trainer.save_strategy='no' for none",
                )
            wanted["save_total_limit"] = self.limit
        return wanted


class BestModel(RunCallback):
    """Loads the best checkpoint when training ends, so that the saved adapter is the best one and not the last.

    Args:
        metric_for_best_model: an evaluation's figure; None takes the run's objective.
        greater_is_better: None follows the run's direction, or the metric's name: a loss is better when smaller.
    """

    def __init__(self, metric_for_best_model: str | None = None, greater_is_better: bool | None = None) -> None:
        self.metric_for_best_model, self.greater_is_better = metric_for_best_model, greater_is_better

    def arguments(self) -> dict[str, Any]:
        """load_best_model_at_end, metric_for_best_model and greater_is_better."""
        own = self.metric_for_best_model not in (None, self.objective)
        metric = _metric(self.metric_for_best_model or self.objective, None if own else self.direction)
        if self.greater_is_better is not None:
            metric["greater_is_better"] = self.greater_is_better
        return {"load_best_model_at_end": True, **metric}


def _metric(name: str | None, direction: str | None) -> dict[str, Any]:
    """Which figure decides, and which way: by direction, else a loss or perplexity is better when smaller."""
    name = name if name and name.startswith("eval_") else f"eval_{name or 'loss'}"
    if name == "eval_train_loss":
        name = "eval_loss"  # the objective of a run without evaluations
    return {"metric_for_best_model": name, "greater_is_better": greater_is_better(name, direction)}
