"""Stop when the evaluation metric no longer improves."""

from __future__ import annotations

import logging
import math
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from sft.config.checks.figures import greater_is_better
from sft.config.errors import UserError
from sft.training.callbacks.base import RunCallback

log = logging.getLogger(__name__)


class EarlyStopping(RunCallback, ExportableState):
    """Stops training after some evaluations without an improvement.

    Unlike transformers' callback it does not need load_best_model_at_end, and with several evaluation sets, which
    are logged one at a time, it waits for the metric it monitors.

    Args:
        early_stopping_patience: how many evaluations in a row may pass without an improvement.
        early_stopping_threshold: the minimum improvement that counts.
        metric: the metric to monitor; None is the run's objective, or eval_loss.
    """

    role = "stops_early"
    figure_argument = "metric"

    def __init__(
        self,
        early_stopping_patience: int = 3,
        early_stopping_threshold: float = 0.0,
        metric: str | None = None,
    ) -> None:
        if early_stopping_patience < 1:
            raise UserError(
                f"a patience of {early_stopping_patience} would stop at the first evaluation",
                where="callbacks.early_stopping.early_stopping_patience",
                remedy="1 or more",
            )
        self.early_stopping_patience = early_stopping_patience
        self.early_stopping_threshold = early_stopping_threshold
        self.metric = metric
        self.best: float | None = None
        self.waited = 0
        self.last_step = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a run without evaluations; end one that had already stopped at the checkpoint being resumed."""
        if str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no":
            raise UserError(
                "early stopping needs evaluations, and this run makes none",
                where="callbacks.early_stopping",
                remedy="trainer.eval_strategy=epoch with dataset.eval_fraction=0.1, or leave the callback out",
            )
        if self.waited >= self.early_stopping_patience:
            log.info(
                "stopped early at step %d: %s was not better for %d evaluations",
                state.global_step,
                self._watched(args),
                self.waited,
            )
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Count evaluations without an improvement; the metric counts once per step however often it is logged."""
        name = self._watched(args)
        if logs is None or name not in logs or state.global_step == self.last_step:
            return
        self.last_step = state.global_step
        value = float(logs[name])
        if self._better(value, name, args):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.early_stopping_patience and not control.should_training_stop:
            log.info("stopping early: %s has not been better than %s for %d evaluations", name, self.best, self.waited)
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warn if the metric was never reported: a misspelt metric would never stop the run."""
        if self.last_step < 0:
            log.warning("early stopping monitored %s, which no evaluation reported", self._watched(args))

    def _watched(self, args: TrainingArguments) -> str:
        objective = self.objective if self.objective != "train_loss" else None
        name = self.metric or objective or args.metric_for_best_model or "eval_loss"
        return name if name.startswith("eval_") else f"eval_{name}"

    def _better(self, value: float, name: str, args: TrainingArguments) -> bool:
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        direction = self.direction if self.metric in (None, self.objective) else None
        if direction is None and args.greater_is_better is not None and name == args.metric_for_best_model:
            greater = args.greater_is_better
        else:
            greater = greater_is_better(name, direction)
        gain = value - self.best if greater else self.best - value
        return gain > self.early_stopping_threshold

    def state(self) -> dict[str, Any]:
        """The state that a resumed run needs to stop where an uninterrupted one would."""
        return {
            "args": {
                "early_stopping_patience": self.early_stopping_patience,
                "early_stopping_threshold": self.early_stopping_threshold,
                "metric": self.metric,
            },
            "attributes": {"best": self.best, "waited": self.waited, "last_step": self.last_step},
        }
