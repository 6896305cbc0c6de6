"""Report the evaluations to a hyperparameter search, and end the run if the search prunes it."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from sft.config.errors import Pruned
from sft.sweep.search.pruning import Reporter
from sft.training.callbacks.base import RunCallback
from sft.training.fused.place import current


class Pruning(RunCallback):
    """Reports the objective after each evaluation, or the evaluation loss if the objective is known only at the end.

    Args:
        reporter: passes values to the search.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.value: float | None = None
        self.last_step = -1

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Read the metric; with several evaluation sets the metrics arrive one set at a time."""
        logs = logs or {}
        if self.objective in logs and self.objective.startswith("eval_"):
            self.value = float(logs[self.objective])
        elif "eval_loss" in logs:
            loss = float(logs["eval_loss"])
            self.value = -loss if self.direction == "maximize" else loss

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report once per step, after all other callbacks have seen the metrics; a run at its last step is not pruned.

        Raises:
            Pruned: the search prunes this run.
        """
        value, self.value = self.value, None
        if value is None or not math.isfinite(value) or state.global_step == self.last_step:
            return
        self.last_step = state.global_step
        self.reporter.report(state.global_step, value)
        if (place := current.get()) is not None:  # jobs that train together are judged together
            place.wait(state.global_step)
        if state.global_step < state.max_steps and self.reporter.should_prune():
            raise Pruned(f"given up by the search at step {state.global_step} of {state.max_steps}")


def pruning_callbacks() -> list[RunCallback]:
    """The callback of a search's job; [] for any other run."""
    from sft.sweep.search.pruning import current as current_reporter

    reporter = current_reporter()
    return [Pruning(reporter)] if reporter is not None else []
