"""Log the losses to train.log, and warn about spikes."""

from __future__ import annotations

import logging
import math
import statistics
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from sft.run.log import FILE_ONLY
from sft.training.callbacks.base import RunCallback

log = logging.getLogger(__name__)


class LossLogger(RunCallback, ExportableState):
    """Writes each log line into train.log and warns about loss spikes.

    Args:
        spike_factor: a loss above this many times the median of recent losses is a spike; None disables the check.
        window: number of logged losses for the median; no spike is reported before half of them are known.
        spike_least: a spike is at least this much above the median, in nats per token: small losses vary more.
    """

    weight_neutral = ("*",)

    def __init__(self, spike_factor: float | None = 2.0, window: int = 20, spike_least: float = 0.5) -> None:
        self.spike_factor, self.window, self.spike_least = spike_factor, window, spike_least
        self.recent: list[float] = []
        self.spikes = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line; check its loss for a spike."""
        if not logs or not state.is_world_process_zero:
            return
        figures = ", ".join(f"{key} {_short(value)}" for key, value in logs.items())
        log.info("step %d/%d: %s", state.global_step, state.max_steps, figures, extra=FILE_ONLY)
        loss = logs.get("loss")
        if loss is not None and math.isfinite(float(loss)):
            self._look(float(loss), state.global_step)

    def _look(self, loss: float, step: int) -> None:
        if self.spike_factor is not None and len(self.recent) * 2 >= self.window:
            median = statistics.median(self.recent)
            if loss > self.spike_factor * median and loss - median >= self.spike_least:
                self.spikes += 1
                log.warning(
                    "loss spike at step %d: %.3g, where the last %d were around %.3g%s",
                    step,
                    loss,
                    len(self.recent),
                    median,
                    f"; its rows: {self.rows_of_step()}" if self.rows_of_step is not None else "",
                )
        self.recent = [*self.recent, loss][-self.window :]

    def state(self) -> dict[str, Any]:
        """The last losses and the number of spikes."""
        return {
            "args": {"spike_factor": self.spike_factor, "window": self.window, "spike_least": self.spike_least},
            "attributes": {"recent": self.recent, "spikes": self.spikes},
        }


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
