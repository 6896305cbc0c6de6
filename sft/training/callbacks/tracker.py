"""Pass what the trainer logs on to a tracker."""

from __future__ import annotations

from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from sft.run.trackers.base import Guarded, Tracker
from sft.training.callbacks.base import RunCallback


class TrackerCallback(RunCallback):
    """Forwards logs to a started tracker; who started it also finishes it.

    Args:
        tracker: a started tracker, as :func:`sft.run.trackers.base.tracking` gives it.
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
