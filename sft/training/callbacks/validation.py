"""When to evaluate."""

from __future__ import annotations

from typing import Any

from sft.config.checks.schedules import validation
from sft.training.callbacks.base import RunCallback


class Validation(RunCallback):
    """Sets when the model is evaluated.

    Args:
        every: a number of steps, a fraction of all steps below 1, or "epoch"; None leaves it to trainer.eval_strategy.
        at_start: evaluate before the first step too, as a baseline.
        delay: steps or epochs before the first evaluation.
    """

    role = "evaluates"

    def __init__(self, every: float | str | None = "epoch", at_start: bool = False, delay: float = 0) -> None:
        self.every, self.at_start, self.delay = every, at_start, delay

    def arguments(self) -> dict[str, Any]:
        """eval_strategy, eval_steps, eval_on_start and eval_delay, if set here."""
        return validation(self.every, self.at_start, self.delay)
