"""A training loop whose batches are computed together with those of other jobs, if the run is part of a group."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sft.data.batches.collate import split_batch
from sft.data.documents import IGNORE
from sft.evaluation.loss import Outputs
from sft.kernels.cross_entropy import summed_loss
from sft.training.fused.place import Place, Request, current
from sft.training.memory import RngState
from sft.training.trainer.guarding import GuardingTrainer

log = logging.getLogger(__name__)

# tolerance between the mean loss of a batch in the group and alone, relative and in nats: the order of summation differs
TOLERANCE = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (3e-2, 2e-2)}


class JoiningTrainer(GuardingTrainer):
    """A Trainer that submits its batches to the group instead of computing them.

    Attributes:
        place: its membership in the group; None if this run trains by itself.
        noise, positions, head: as of SftTrainer.
        outputs_of_group: computes evaluation batches, for `EvaluatingTrainer`.
    """

    place: Place | None = None
    outputs_of_group: Outputs | None = None
    noise: Any
    positions: bool
    head: Any
    _compared = False

    @contextmanager
    def joined(self) -> Iterator[bool]:
        """Train with the other jobs of the group within the block; yields whether the run trains by itself."""
        place = current.get()
        reason = place.join(self) if place is not None else None
        if reason:
            log.info("trains by itself: %s", reason)
        if place is None or reason:
            yield True
            return
        self.place, self.outputs_of_group = place, self._outputs
        try:
            yield False
        except BaseException:
            self._leave()
            raise
        # the final evaluation is computed together too; the job leaves its group when it ends

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Loss and gradients of a micro-batch."""
        if self.place is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free optimizers have their own training mode
            self.optimizer.train()  # type: ignore[union-attr]
        batch, about = split_batch(self._prepare_inputs(inputs))
        if self.noise is not None:
            self.noise.of(batch)
        alone = None if self._compared else self._loss_alone(model, batch)
        before = RngState() if alone is not None else None
        loss, gradients = self.place.ask(Request("train", batch, self.noise))
        trained = (batch["shift_labels"] != IGNORE).sum()
        if alone is not None and before is not None and not self._same(alone / trained, loss / trained):
            before.restore()
            return super().training_step(model, inputs, num_items_in_batch)
        items = trained if num_items_in_batch is None else num_items_in_batch
        share = 1.0 / torch.as_tensor(items, device=loss.device).clamp(min=1)
        _accumulate([each for each in model.parameters() if each.requires_grad], gradients, share)
        loss = loss * share
        self.check_loss(model, loss, batch, about)
        return loss

    def _loss_alone(self, model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        """The first batch's loss with the run's own model and the same random numbers."""
        draws = RngState()
        with torch.no_grad(), self.accelerator.autocast():
            loss, _ = summed_loss(model, batch, self.positions, self.head)
        draws.restore()
        return loss

    def _same(self, alone: torch.Tensor, loss: torch.Tensor) -> bool:
        """Whether the first mean loss in the group equals the run's own; otherwise the run continues by itself."""
        self._compared = True
        dtype = next(iter(self.model.parameters())).dtype  # type: ignore[union-attr]
        relative, nats = TOLERANCE[torch.bfloat16 if self.args.bf16 or dtype is torch.bfloat16 else torch.float32]
        if torch.isclose(loss, alone, rtol=relative, atol=nats, equal_nan=True):
            return True
        log.warning("trains by itself: its loss among other jobs is %.6f, and %.6f alone", float(loss), float(alone))
        self._leave()
        return False

    def _outputs(self, batch: Mapping[str, Any]) -> Any:
        """The model's predictions for an evaluation batch."""
        assert self.place is not None
        return self.place.ask(Request("outputs", batch))

    def _leave(self) -> None:
        if self.place is not None:
            self.place.leave()
        self.place = self.outputs_of_group = None


def _accumulate(
    parameters: Sequence[torch.nn.Parameter], gradients: Sequence[torch.Tensor | None], share: torch.Tensor
) -> None:
    """Add gradients, multiplied by `share`, to the existing ones."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            continue
        gradient = gradient * share
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
