"""SIGTERM, SIGINT and Slurm's requeue signal: finish the step, write a checkpoint, leave with the signal's code.

Of several processes each may get it, or one alone, and torchrun sends it on to all once more: they stop at one step.
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
SAME = 15.0  # seconds within which several processes take a signal for the first one, sent on


class Stopping(TrainerCallback):
    """Stops training at the end of the step in which a signal came; a second signal ends the process at once.

    Args:
        ranks: the processes that train together.

    Attributes:
        signal: the signal that came, None so far.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self.signal: int | None = None
        self.stopped = False
        self._came = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for the time of the block.

        Outside the main thread Python delivers none: those of a group of jobs are handed on by it.
        """
        if threading.current_thread() is not threading.main_thread():
            place = current.get()
            end = place.listen(self._take) if place is not None else lambda: None
            try:
                yield
            finally:
                end()
            return
        before = {number: signal.signal(number, self._take) for number in SIGNALS}
        try:
            yield
        except BaseException:
            if self.ranks.many:  # torchrun ends all for the first that goes: what is to be written and said is first
                before = {}
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: Any) -> None:
        if self.signal is not None:
            if self.ranks.many and time.monotonic() - self._came < SAME:
                return
            os._exit(128 + number)
        self.signal, self._came = number, time.monotonic()
        text = (
            f"\n{signal.Signals(number).name}: a checkpoint is written at the end of this step; again to stop at once\n"
        )
        if self.ranks.main:
            os.write(2, text.encode())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint and the end."""
        if self._agreed() is not None:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Within an epoch nothing is due: transformers ends it early, and would evaluate and save as at its true end.

        At its true end the evaluation belongs to the run, so the checkpoint is written once more, behind it.
        """
        if not self.stopped:
            return
        control.should_save = abs((state.epoch or 0.0) - round(state.epoch or 0.0)) < 1e-6
        if not control.should_save:
            control.should_evaluate = control.should_log = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A signal from before the first step: nothing has been trained, nothing is to be saved."""
        self.check(state.global_step, None)

    def check(self, step: int, last: int | None) -> None:
        """Raise where a signal has come.

        Args:
            step: the optimizer step reached.
            last: the last step of the run; one that was reached is no interruption. None: not known yet.

        Raises:
            Interrupted: with the signal's exit code, 128 + its number.
        """
        number = self._agreed()
        if number is None or (last is not None and step >= last):
            return
        name = signal.Signals(number).name
        raise Interrupted(
            f"stopped by {name} at step {step}; the same command in the same directory goes on", 128 + number
        )

    def _agreed(self) -> int | None:
        """The signal that came to any of the processes; one that comes here meanwhile is of the next step."""
        if not self.ranks.many:
            return self.signal
        number = self.ranks.most(self.signal or 0)
        if number and self.signal is None:
            self.signal, self._came = number, time.monotonic()
        return number or None
