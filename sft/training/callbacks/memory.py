"""Monitor the memory of the accelerator and of the process."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from sft.run import memory
from sft.training.callbacks.base import RunCallback

log = logging.getLogger(__name__)


class MemoryMonitor(RunCallback, ExportableState):
    """Adds memory_bytes and peak_memory_bytes to each training log, and warns before memory runs out.

    Memory is the accelerator's if there is one, and the process's resident set otherwise.

    Args:
        warn_above: warn once when this fraction of the accelerator's or the machine's memory is in use.
    """

    weight_neutral = ("*",)

    def __init__(self, warn_above: float = 0.95) -> None:
        self.warn_above = warn_above
        self.peak_bytes = 0
        self._warned = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the memory to a line of training metrics."""
        now = memory.device_bytes() or memory.process_bytes()
        peak = max(self.update(), now)
        if logs is not None and "loss" in logs:
            logs.update(memory_bytes=now, peak_memory_bytes=peak)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the last peak."""
        self.update()

    def update(self) -> int:
        """Update the peak; return the peak of all sessions in bytes."""
        self.peak_bytes = max(self.peak_bytes, memory.peak_bytes())
        available = memory.device_total_bytes() or memory.total_bytes()
        if not self._warned and available and self.peak_bytes > self.warn_above * available:
            self._warned = True
            log.warning(
                "%.1f of %.1f GiB of memory in use; reduce it with dataset.max_length, trainer.per_device_train_batch_size or "
                "trainer.gradient_checkpointing=true",
                self.peak_bytes / 2**30,
                available / 2**30,
            )
        return self.peak_bytes

    def state(self) -> dict[str, Any]:
        """The peak so far, so that a resumed run reports the peak of all its sessions."""
        return {"args": {"warn_above": self.warn_above}, "attributes": {"peak_bytes": self.peak_bytes}}
