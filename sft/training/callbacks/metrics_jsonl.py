"""metrics.jsonl: every logged step as one line."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from sft.training.callbacks.base import RunCallback


class MetricsJsonl(RunCallback):
    """Writes what the trainer logs into the run directory, one flushed line per step.

    A resumed run drops the lines after its checkpoint, so that no step appears twice; one that resumes a checkpoint of
    another directory begins with that run's lines up to the checkpoint.
    """

    weight_neutral = ("*",)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop what an interrupted session wrote after the checkpoint, and that session's summary line."""
        if self.run is not None:
            step = state.global_step
            if step and not self.run.metrics_jsonl.exists():
                for line in state.log_history:
                    self.run.append_jsonl(self.run.metrics_jsonl, {"step": line.get("step"), **line})
            known = {(_step(line), _is_evaluation(line)) for line in state.log_history}

            def stays(line: dict[str, Any]) -> bool:
                at = _step(line)  # of the checkpoint's own step, keep what was logged before the checkpoint was written
                made = at < step or (at == step and (at, _is_evaluation(line)) in known)
                return made and "train_runtime" not in line

            self.run.keep_jsonl(self.run.metrics_jsonl, stays)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add a line."""
        if self.run is not None and logs:
            self.run.append_jsonl(
                self.run.metrics_jsonl, {"step": state.global_step, **logs, "time": round(time.time(), 3)}
            )


def _step(line: dict[str, Any]) -> float:
    step = line.get("step")
    return step if isinstance(step, int | float) else float("inf")


def _is_evaluation(line: dict[str, Any]) -> bool:
    return any(key.startswith("eval_") for key in line)
