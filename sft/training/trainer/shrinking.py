"""A training loop that continues with smaller batches when memory runs out: the same steps, none repeated."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Any

from transformers import Trainer

from sft.run import checkpoint
from sft.training.memory import RngState, free_memory, is_out_of_memory, smaller_batch
from sft.training.trainer.nonfinite import Guard
from sft.training.trainer.progress import Progress

log = logging.getLogger(__name__)


class ShrinkingTrainer(Trainer):
    """A Trainer for `auto_find_batch_size`.

    Attributes:
        progress, guard: reset when a step does not fit.
        effective_batch: rows per step in one process, independent of the batch size.
    """

    progress: Progress
    guard: Guard
    effective_batch: int
    _loss_before: Any = None  # the logged loss as it was before this step
    _rng_state: RngState | None = None  # the random generators as they were before this step

    def _note_step(self) -> None:
        """Save what is needed if the step that begins now fails."""
        self.progress.begin_step()
        self._loss_before = self._tr_loss.clone()
        self._rng_state = RngState() if self.args.auto_find_batch_size else None

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        found = super()._init_training_state(*args, **kwargs)
        # a checkpoint's batch size may be from before memory ran out
        self.state.train_batch_size = self._train_batch_size
        return found

    def _inner_training_loop(  # type: ignore[override]
        self, batch_size: int | None = None, args: Any = None, resume_from_checkpoint: Any = None, **kwargs: Any
    ) -> Any:
        """Run the loop; with auto_find_batch_size continue from a step that did not fit with smaller batches.

        transformers only shrinks the batch, which changes the steps and their number, and starts over with the current
        weights. Here the accumulation grows as the batch shrinks, and no step is repeated.
        """
        batch = int(batch_size or self._train_batch_size)
        while True:
            if self.args.auto_find_batch_size:
                self._split_step(batch)
            rng_state, began = RngState(), self.state.global_step
            try:
                return super()._inner_training_loop(
                    batch_size=batch, args=args, resume_from_checkpoint=resume_from_checkpoint, **kwargs
                )
            except Exception as error:
                if not self.args.auto_find_batch_size or not is_out_of_memory(error):
                    raise
                if batch == 1 or self.accelerator.num_processes > 1 or self.progress.in_evaluation:
                    raise MemoryError(str(error)) from error  # of a kind that transformers does not retry
                made, what = self._has_made_steps(began, resume_from_checkpoint), str(error).split("\n")[0]
                traceback.clear_frames(error.__traceback__)  # the frames keep the activations alive
            batch = smaller_batch(batch, self.effective_batch)
            log.warning(
                "out of memory at step %d (%s): continuing with batches of %d, %d per step; the effective batch stays %d",
                self.state.global_step + 1,
                what,
                batch,
                self.effective_batch // batch,
                self.effective_batch,
            )
            self.model.zero_grad(set_to_none=True)  # type: ignore[union-attr]
            self.guard.begin([])
            self.progress.discard_step()
            free_memory()
            if made:
                resume_from_checkpoint = self._checkpoint_before_step(batch)
            else:
                rng_state.restore()

    def _split_step(self, batch: int) -> None:
        """Split a step into batches of this size, keeping the effective batch."""
        self._train_batch_size = batch
        self.args.per_device_train_batch_size = batch // max(1, self.args.n_gpu)
        self.args.gradient_accumulation_steps = self.effective_batch // batch

    def _has_made_steps(self, began: int, resume_from_checkpoint: Any) -> bool:
        """Whether this attempt has changed the weights since its start or its checkpoint."""
        start = checkpoint.step_of(resume_from_checkpoint) if resume_from_checkpoint else None
        return self.state.global_step > (start if start is not None else began)

    def _checkpoint_before_step(self, batch: int) -> str:
        """Write a checkpoint of the last completed step, with the random generators as they were then."""
        if self._rng_state is not None:
            self._rng_state.restore()
        self._tr_loss = self._loss_before
        self._train_batch_size = self.state.train_batch_size = batch
        self._save_checkpoint(self.model, None)  # type: ignore[arg-type]
        return str(Path(str(self.args.output_dir)) / checkpoint.name(self.state.global_step))
