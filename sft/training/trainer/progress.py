"""What training has consumed: tokens, trained tokens and seconds, through interruptions."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from sft.data.batches.rank_shards import STAND_IN
from sft.data.documents import IGNORE
from sft.distributed.ranks import Ranks
from sft.run.phases import current
from sft.training.work import Work, pairs

log = logging.getLogger(__name__)


class Progress(TrainerCallback, ExportableState):
    """Counts what goes through the model; its state is in every checkpoint, so a resumed run counts on.

    Attributes:
        total_tokens: tokens in training batches, padding apart, of all processes.
        trained_tokens: those of them with a loss.
        padded_tokens: places in the batches' tensors.
        pairs: of tokens within documents that attention compares.
        step_seconds: time in training steps, evaluation and saving left out.
        train_seconds: time in the loop, evaluation and saving included.
        skipped_steps: steps left out because of a loss or gradient that was no number.
        skipped_in_a_row: those of them since the last step that was made.
        skipped_logged: skipped_steps at the last logged loss.
        unlogged_loss: the loss since the last logged one, at the last checkpoint, by rank.
        last_logged: the step that was logged last, at the last checkpoint.
        epoch_ended: whether the present epoch's end has done what is due then (evaluation, log, checkpoint).
        schedule_steps: steps that the learning rate's schedule is made for.
        last_step: gradient norm and rate of the step of the last checkpoint.
        in_evaluation: whether an evaluation is under way (or was left by an error).

    Args:
        trainer: gets the loss back that a checkpoint keeps.
        ranks: the processes that train together.
    """

    def __init__(self, trainer: Any = None, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self.total_tokens = self.trained_tokens = self.padded_tokens = 0
        self.pairs = 0.0
        self.step_seconds = self.train_seconds = 0.0
        self.skipped_steps = self.skipped_in_a_row = self.skipped_logged = 0
        self.unlogged_loss: list[float] = []
        self.last_logged: int | None = None
        self.epoch_ended = False
        self.schedule_steps: int | None = None
        self.last_step: list[float | None] | None = None
        self.in_evaluation = False
        self.trainer = trainer
        self._step: list[float] = [0, 0, 0, 0.0]  # tokens, trained, padded and pairs of the step being made, here
        self._began: float | None = None
        self._evaluated = 0.0
        self._step_began: float | None = None

    def count(self, batch: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Add a batch's tokens to those of the step being made; rows that only stand in for none are left out."""
        if about["row"] == [STAND_IN]:
            return
        more = (
            int(sum(about["lengths"])),
            int((batch["shift_labels"] != IGNORE).sum()),
            batch["input_ids"].numel(),
            pairs(about["lengths"]),
        )
        self._step = [before + new for before, new in zip(self._step, more, strict=True)]

    def mark(self) -> None:
        """A step begins."""
        self._step = [0, 0, 0, 0.0]

    def back(self) -> None:
        """The step is to be made again: what it has counted is not."""
        self.mark()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The block's time does not count as a step's."""
        began, self.in_evaluation = time.perf_counter(), True
        yield
        self.in_evaluation = False
        self._evaluated += time.perf_counter() - began

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens, padding apart, per second of training steps alone."""
        return self.total_tokens / self.step_seconds if self.step_seconds else None

    @property
    def trained_tokens_per_second(self) -> float | None:
        """Trained tokens per second of training steps alone."""
        return self.trained_tokens / self.step_seconds if self.step_seconds else None

    @property
    def padding(self) -> float | None:
        """The share of the batches' places that holds no token."""
        return max(0.0, 1 - self.total_tokens / self.padded_tokens) if self.padded_tokens else None

    @property
    def shared(self) -> float | None:
        """The share of the tokens that other documents of their batch began with too, and that were computed there."""
        return max(0.0, 1 - self.padded_tokens / self.total_tokens) if self.total_tokens else None

    def utilization(self, work: Work | None, rate: float | None) -> float | None:
        """Model FLOP utilization: the operations that training needed by the hardware's; None where one is not known."""
        if work is None or not rate or not self.step_seconds:
            return None
        made = min(self.total_tokens, self.padded_tokens)  # shared tokens are computed once
        return work.operations(made, self.trained_tokens, self.pairs) / self.step_seconds / rate

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; a resumed run gets the loss back that was not logged yet."""
        self._began = time.perf_counter()
        if self.trainer is not None and state.global_step and self.last_logged is not None:
            self.trainer._tr_loss += self.unlogged_loss[self.ranks.rank] if self.unlogged_loss else 0.0
            self.trainer._globalstep_last_logged = self.last_logged

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the step's clock."""
        self._step_began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop it, and the loop's: a checkpoint made now has both. The step's tokens are those of all processes."""
        self.epoch_ended = False
        tokens, trained, padded, compared = self.ranks.total(self._step)
        self.total_tokens += int(tokens)
        self.trained_tokens += int(trained)
        self.padded_tokens += int(padded)
        self.pairs += compared
        self.mark()
        now = time.perf_counter()
        if self._step_began is not None:
            self.step_seconds += now - self._step_began
        self._stop_loop(now)
        self._first_step()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A checkpoint from now on is one behind the epoch's evaluation."""
        self.epoch_ended = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the loop's clock."""
        self._stop_loop(time.perf_counter())

    def _first_step(self) -> None:
        """At the end of the first one: say where the time until then went."""
        phases = current()
        if phases is not None and not phases.complete:
            phases.mark("first step", last=True)
            log.info("%s", phases.line())

    def _stop_loop(self, now: float) -> None:
        if self._began is not None:
            self.train_seconds += now - self._began
            self._began = now

    def state(self) -> dict[str, Any]:
        """For checkpoints."""
        names = ["total_tokens", "trained_tokens", "padded_tokens", "pairs", "step_seconds", "train_seconds"]
        names += ["skipped_steps", "skipped_in_a_row", "skipped_logged", "unlogged_loss", "last_logged"]
        names += ["epoch_ended", "schedule_steps", "last_step"]
        return {"args": {}, "attributes": {name: getattr(self, name) for name in names}}
