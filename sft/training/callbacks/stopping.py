"""SIGTERM, SIGINT and Slurm's requeue signal: finish the step, write a checkpoint, exit with the signal's code.

With several processes any of them may get the signal, and torchrun forwards it to all: they stop at the same step.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.config.errors import Interrupted
from sft.distributed.ranks import Ranks
from sft.training.fused.place import current

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAME_SIGNAL_SECONDS = 15.0  # seconds within which several processes treat another signal as the first one, forwarded


class Stopping(TrainerCallback):
    """Stops training at the end of the step in which a signal arrives; a second signal ends the process at once.

    Args:
        ranks: the processes that train together.

    Attributes:
        signal: the signal received, None so far.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self.signal: int | None = None
        self.stopped = False
        self._came = 0.0

    @contextmanager
    def catch_signals(self) -> Iterator[None]:
        """Take the signals for the time of the block.

        Outside the main thread Python delivers none: those of a group of jobs are handed on by it.
        """
        if threading.current_thread() is not threading.main_thread():
            place = current.get()
            end = place.listen(self._on_signal) if place is not None else lambda: None
            try:
                yield
            finally:
                end()
            return
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        except BaseException:
            # torchrun kills the other ranks as soon as one exits, so everything is written and reported before that
            if self.ranks.is_distributed:
                before = {}
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signal is not None:
            if self.ranks.is_distributed and time.monotonic() - self._came < SAME_SIGNAL_SECONDS:
                return
            os._exit(128 + number)
        self.signal, self._came = number, time.monotonic()
        text = f"\n{signal.Signals(number).name}: a checkpoint is written at the end of this step; repeat to stop at once\n"
        if self.ranks.is_main_process:
            os.write(2, text.encode())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Request a checkpoint and the end of training."""
        if self._signal_of_any_rank() is not None:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Within an epoch nothing is due: transformers ends it early, and would evaluate and save as at its real end.

        At its real end the evaluation belongs to the run, so the checkpoint is written again after it.
        """
        if not self.stopped:
            return
        control.should_save = abs((state.epoch or 0.0) - round(state.epoch or 0.0)) < 1e-6
        if not control.should_save:
            control.should_evaluate = control.should_log = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Handle a signal from before the first step: nothing has been trained, so nothing is saved."""
        self.check(state.global_step, None)

    def check(self, step: int, last: int | None) -> None:
        """Raise if a signal was received.

        Args:
            step: the optimizer step reached.
            last: the last step of the run; a signal after it does not count as an interruption. None: not known yet.

        Raises:
            Interrupted: with the signal's exit code, 128 + its number.
        """
        number = self._signal_of_any_rank()
        if number is None or (last is not None and step >= last):
            return
        name = signal.Signals(number).name
        raise Interrupted(
            f"stopped by {name} at step {step}; the same command in the same directory resumes it", 128 + number
        )

    def _signal_of_any_rank(self) -> int | None:
        """The signal received by any of the processes; one that arrives here meanwhile counts for the next step."""
        if not self.ranks.is_distributed:
            return self.signal
        number = self.ranks.all_reduce_max(self.signal or 0)
        if number and self.signal is None:
            self.signal, self._came = number, time.monotonic()
        return number or None
