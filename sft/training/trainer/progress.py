"""What training has consumed across interruptions: tokens, trained tokens and seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from sft.data.batches.rank_shards import PLACEHOLDER_ROW
from sft.data.documents import IGNORE
from sft.distributed.ranks import Ranks
from sft.run.phases import current
from sft.training.flops import FlopsPerToken, attention_pairs

log = logging.getLogger(__name__)


class Progress(TrainerCallback, ExportableState):
    """Counts what passes through the model; its state is in every checkpoint, so a resumed run continues counting.

    Attributes:
        total_tokens: tokens in training batches of all processes, without padding.
        trained_tokens: those of them with a loss.
        padded_tokens: positions in the batches' tensors, padding included.
        pairs: pairs of tokens within documents that attention compares.
        step_seconds: time in training steps, without evaluation and saving.
        train_seconds: time in the loop, evaluation and saving included.
        skipped_steps: steps skipped because of a non-finite loss or gradient.
        skipped_in_a_row: those of them since the last completed step.
        skipped_logged: skipped_steps at the last logged loss.
        unlogged_loss: the loss since the last logged one, at the last checkpoint, by rank.
        last_logged: the last logged step, at the last checkpoint.
        epoch_ended: whether the current epoch's end has been processed (evaluation, log, checkpoint).
        schedule_steps: number of steps of the learning rate schedule.
        last_step: gradient norm and rate of the last checkpoint's step.
        in_evaluation: whether an evaluation is running (or ended by an error).

    Args:
        trainer: gets the loss stored in a checkpoint back.
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
        # tokens, trained, padded and pairs of the current step, in this process
        self._step: list[float] = [0, 0, 0, 0.0]
        self._began: float | None = None
        self._evaluated = 0.0
        self._step_began: float | None = None

    def count(self, batch: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Add a batch's tokens to those of the current step; placeholder rows do not count."""
        if about["row"] == [PLACEHOLDER_ROW]:
            return
        more = (
            int(sum(about["lengths"])),
            int((batch["shift_labels"] != IGNORE).sum()),
            batch["input_ids"].numel(),
            attention_pairs(about["lengths"]),
        )
        self._step = [before + new for before, new in zip(self._step, more, strict=True)]

    def begin_step(self) -> None:
        """Start counting a step."""
        self._step = [0, 0, 0, 0.0]

    def discard_step(self) -> None:
        """Forget what the current step has counted, because the step is made again."""
        self.begin_step()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Exclude the block's time from the step's."""
        began, self.in_evaluation = time.perf_counter(), True
        yield
        self.in_evaluation = False
        self._evaluated += time.perf_counter() - began

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens without padding, per second of training steps only."""
        return self.total_tokens / self.step_seconds if self.step_seconds else None

    @property
    def trained_tokens_per_second(self) -> float | None:
        """Trained tokens per second of training steps only."""
        return self.trained_tokens / self.step_seconds if self.step_seconds else None

    @property
    def padding(self) -> float | None:
        """The fraction of the batches' positions that is padding."""
        return max(0.0, 1 - self.total_tokens / self.padded_tokens) if self.padded_tokens else None

    @property
    def shared(self) -> float | None:
        """The fraction of tokens in shared prefixes that were computed only once."""
        return max(0.0, 1 - self.padded_tokens / self.total_tokens) if self.total_tokens else None

    def utilization(self, work: FlopsPerToken | None, peak_flops: float | None) -> float | None:
        """Model FLOPs utilization: the FLOPs that training needed over the hardware's peak; None if either is
        unknown."""
        if work is None or not peak_flops or not self.step_seconds:
            return None
        made = min(self.total_tokens, self.padded_tokens)  # shared tokens are computed once
        return work.total(made, self.trained_tokens, self.pairs) / self.step_seconds / peak_flops

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; restore the not yet logged loss of a resumed run."""
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
        """Stop it and the loop's clock, so that a checkpoint written now has both. Sum the step's tokens over all
        processes."""
        self.epoch_ended = False
        tokens, trained, padded, compared = self.ranks.all_reduce_sum(self._step)
        self.total_tokens += int(tokens)
        self.trained_tokens += int(trained)
        self.padded_tokens += int(padded)
        self.pairs += compared
        self.begin_step()
        now = time.perf_counter()
        if self._step_began is not None:
            self.step_seconds += now - self._step_began
        self._stop_loop(now)
        self._first_step()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note that checkpoints from now on come after the epoch's evaluation."""
        self.epoch_ended = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the loop's clock."""
        self._stop_loop(time.perf_counter())

    def _first_step(self) -> None:
        """At the end of the first step, log where the time until then went."""
        phases = current()
        if phases is not None and not phases.complete:
            phases.mark("first step", last=True)
            log.info("%s", phases.line())

    def _stop_loop(self, now: float) -> None:
        if self._began is not None:
            self.train_seconds += now - self._began
            self._began = now

    def state(self) -> dict[str, Any]:
        """The state for checkpoints."""
        names = ["total_tokens", "trained_tokens", "padded_tokens", "pairs", "step_seconds", "train_seconds"]
        names += ["skipped_steps", "skipped_in_a_row", "skipped_logged", "unlogged_loss", "last_logged"]
        names += ["epoch_ended", "schedule_steps", "last_step"]
        return {"args": {}, "attributes": {name: getattr(self, name) for name in names}}
