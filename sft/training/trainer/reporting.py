"""The log lines of training: the mean loss of the completed steps, and the speed so far."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from sft.training.flops import FlopsPerToken
from sft.training.trainer.progress import Progress


class ReportingTrainer(Trainer):
    """A Trainer with complete logged metrics.

    Attributes:
        progress: counts tokens, seconds and skipped steps.
        flops: the model's operations for a token; None where they are not known.
        peak_flops: the hardware's operations in a second; None where they are not known.
    """

    progress: Progress
    flops: FlopsPerToken | None
    peak_flops: float | None
    _window = 1  # number of steps that a logged loss averages

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._window = self.state.global_step - self._globalstep_last_logged
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a line; training lines include the speed so far."""
        if "loss" in logs:
            self._without_skipped(logs)
            if self.progress.tokens_per_second:
                logs["tokens_per_second"] = round(self.progress.tokens_per_second, 1)
                logs["trained_tokens_per_second"] = round(self.progress.trained_tokens_per_second or 0.0, 1)
                utilization = self.progress.utilization(self.flops, self.peak_flops)
                if utilization is not None:
                    logs["model_flop_utilization"] = round(utilization, 4)
        super().log(logs, start_time)

    def _without_skipped(self, logs: dict[str, float]) -> None:
        """Make a logged loss the mean of the completed steps; no loss if all were skipped."""
        skipped = self.progress.skipped_steps - self.progress.skipped_logged
        if not skipped:
            return
        self.progress.skipped_logged = self.progress.skipped_steps
        loss, made = logs.pop("loss"), self._window - skipped
        if made > 0:
            logs["loss"] = loss * self._window / made
        logs["skipped_steps"] = self.progress.skipped_steps
