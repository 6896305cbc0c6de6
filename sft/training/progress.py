"""What training has consumed: tokens, trained tokens and seconds, through interruptions."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class Progress(TrainerCallback, ExportableState):
    """Counts what goes through the model; its state is in every checkpoint, so a resumed run counts on.

    Attributes:
        total_tokens: tokens in training batches, padding apart, on this rank.
        trained_tokens: those of them with a loss.
        padded_tokens: places in the batches' tensors.
        step_seconds: time in training steps, evaluation and saving left out.
        train_seconds: time in the loop, evaluation and saving included.
    """

    def __init__(self) -> None:
        self.total_tokens = self.trained_tokens = self.padded_tokens = 0
        self.step_seconds = self.train_seconds = 0.0
        self._began: float | None = None
        self._evaluated = 0.0
        self._step_began: float | None = None

    def count(self, batch: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Add a batch's tokens."""
        self.total_tokens += int(sum(about["lengths"]))
        self.trained_tokens += int((batch["shift_labels"] != -100).sum())
        self.padded_tokens += batch["input_ids"].numel()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The block's time does not count as a step's."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._evaluated += time.perf_counter() - began

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens, padding apart, per second of training steps alone."""
        return self.total_tokens / self.step_seconds if self.step_seconds else None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the step's clock."""
        self._step_began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop it, and the loop's: a checkpoint made now has both."""
        now = time.perf_counter()
        if self._step_began is not None:
            self.step_seconds += now - self._step_began
        self._stop_loop(now)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the loop's clock."""
        self._stop_loop(time.perf_counter())

    def _stop_loop(self, now: float) -> None:
        if self._began is not None:
            self.train_seconds += now - self._began
            self._began = now

    def state(self) -> dict[str, Any]:
        """For checkpoints."""
        names = ("total_tokens", "trained_tokens", "padded_tokens", "step_seconds", "train_seconds")
        return {"args": {}, "attributes": {name: getattr(self, name) for name in names}}
