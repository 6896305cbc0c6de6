"""Forward the trainer's logs to a tracker."""

from __future__ import annotations

from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from sft.run.trackers.base import Guarded, Tracker
from sft.training.callbacks.base import RunCallback


class TrackerCallback(RunCallback):
    """Forwards logs to a started tracker; the caller that started it also finishes it.

    Args:
        tracker: a started tracker, as yielded by :func:`sft.run.trackers.base.tracking`.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker if isinstance(tracker, Guarded) else Guarded(tracker)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Send the line from the main process."""
        if logs and state.is_world_process_zero:
            self.tracker.log(logs, state.global_step)
