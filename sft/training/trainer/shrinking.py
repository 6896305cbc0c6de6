"""A training loop that goes on with smaller batches where memory runs out: the same steps, none made twice."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Any

from transformers import Trainer

from sft.run import checkpoint
from sft.training.memory import Draws, free, is_out_of_memory, smaller
from sft.training.trainer.nonfinite import Guard
from sft.training.trainer.progress import Progress

log = logging.getLogger(__name__)


class ShrinkingTrainer(Trainer):
    """A Trainer for `auto_find_batch_size`.

    Attributes:
        progress, guard: they forget the step that did not fit.
        effective_batch: rows of a step on one process, whatever the batch.
    """

    progress: Progress
    guard: Guard
    effective_batch: int
    _loss_before: Any = None  # the logged loss as it was before this step
    _draws: Draws | None = None  # the random generators as they were before this step

    def _note_step(self) -> None:
        """Note what must be known if the step that begins now fails."""
        self.progress.mark()
        self._loss_before = self._tr_loss.clone()
        self._draws = Draws() if self.args.auto_find_batch_size else None

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        found = super()._init_training_state(*args, **kwargs)
        self.state.train_batch_size = self._train_batch_size  # a checkpoint's may be from before memory ran out
        return found

    def _inner_training_loop(  # type: ignore[override]
        self, batch_size: int | None = None, args: Any = None, resume_from_checkpoint: Any = None, **kwargs: Any
    ) -> Any:
        """The loop; with auto_find_batch_size on with smaller batches of the same sum, from the step that was too large.

        transformers shrinks the batch alone, which makes other steps and more of them, and starts over with the
        weights as they are by then. Here the accumulation grows as the batch shrinks, and no step is made twice.
        """
        batch = int(batch_size or self._train_batch_size)
        while True:
            if self.args.auto_find_batch_size:
                self._split_step(batch)
            draws, began = Draws(), self.state.global_step
            try:
                return super()._inner_training_loop(
                    batch_size=batch, args=args, resume_from_checkpoint=resume_from_checkpoint, **kwargs
                )
            except Exception as error:
                if not self.args.auto_find_batch_size or not is_out_of_memory(error):
                    raise
                if batch == 1 or self.accelerator.num_processes > 1 or self.progress.in_evaluation:
                    raise MemoryError(str(error)) from error  # of a kind that transformers does not try again
                made, what = self._made_steps(began, resume_from_checkpoint), str(error).split("\n")[0]
                traceback.clear_frames(error.__traceback__)  # they hold the activations
            batch = smaller(batch, self.effective_batch)
            log.warning(
                "memory ran out at step %d (%s): on with batches of %d, %d to a step; the effective batch stays %d",
                self.state.global_step + 1,
                what,
                batch,
                self.effective_batch // batch,
                self.effective_batch,
            )
            self.model.zero_grad(set_to_none=True)  # type: ignore[union-attr]
            self.guard.begin([])
            self.progress.back()
            free()
            if made:
                resume_from_checkpoint = self._checkpoint_before_step(batch)
            else:
                draws.again()

    def _split_step(self, batch: int) -> None:
        """Make a step of batches of this size, as many as the effective batch has."""
        self._train_batch_size = batch
        self.args.per_device_train_batch_size = batch // max(1, self.args.n_gpu)
        self.args.gradient_accumulation_steps = self.effective_batch // batch

    def _made_steps(self, began: int, resume_from_checkpoint: Any) -> bool:
        """Whether this attempt has changed the weights since its start or its checkpoint."""
        start = checkpoint.step_of(resume_from_checkpoint) if resume_from_checkpoint else None
        return self.state.global_step > (start if start is not None else began)

    def _checkpoint_before_step(self, batch: int) -> str:
        """A checkpoint of the last whole step, with the random generators as they were then."""
        if self._draws is not None:
            self._draws.again()
        self._tr_loss = self._loss_before
        self._train_batch_size = self.state.train_batch_size = batch
        self._save_checkpoint(self.model, None)  # type: ignore[arg-type]
        return str(Path(str(self.args.output_dir)) / checkpoint.name(self.state.global_step))
