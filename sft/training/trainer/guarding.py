"""A training loop that skips, or stops at, a step with a non-finite loss or gradient, and counts every batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sft.training.trainer.nonfinite import IN_A_ROW, NonFinite
from sft.training.trainer.shrinking import ShrinkingTrainer


class GuardingTrainer(ShrinkingTrainer):
    """A Trainer with a guard; a skipped step is undone with the state saved when it began.

    Attributes:
        guard: decides how to handle a non-finite value.
        progress: counts batches and skipped steps.
    """

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The batches of a step; saves what is needed if the step fails."""
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.guard.begin(found[0])
        self._note_step()
        return found

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm; removes the gradients, and so the update, if the step is skipped."""
        norm = super()._get_grad_norm(model, grad_norm)
        scaled = self.accelerator.scaler is not None  # fp16: its scaler skips steps by itself and lowers the scale
        if self.guard.found is None and not scaled and not torch.isfinite(torch.as_tensor(norm)):
            self.guard.handle("gradient", self.guard.about_step(), self.state.global_step + 1)
        self.guard.synchronize(self.state.global_step + 1)
        if self.guard.found is None:
            self.progress.skipped_in_a_row = 0
            return norm
        self.progress.skipped_steps += 1
        self.progress.skipped_in_a_row += 1
        if self.progress.skipped_in_a_row >= IN_A_ROW:
            raise NonFinite(str(self.guard.found), f"{IN_A_ROW} steps in a row", self.state.global_step + 1)
        self._tr_loss = self._loss_before
        if not scaled:
            # optimizers skip parameters without a gradient, including decay and moments
            model.zero_grad(set_to_none=True)
        return None

    def check_loss(self, model: Any, loss: Any, batch: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Count a training batch and check that its loss is finite."""
        if model.training:
            if not torch.isfinite(loss):
                self.guard.handle("loss", about, self.state.global_step + 1)
            self.progress.count(batch, about)
