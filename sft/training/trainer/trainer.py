"""transformers.Trainer with our loss, our evaluation, complete checkpoints, and no silent NaN."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sft.config.checks.conflicts import spreads
from sft.data.batches.collate import PaddedCollator, split_batch
from sft.data.documents import IGNORE, Rows
from sft.distributed.ranks import joined
from sft.kernels.cross_entropy import summed_loss
from sft.model.head import chooses_positions, output_layer
from sft.training.layout.layout import Layout
from sft.training.layout.microbatches import SideBySide, computed_in, parts_for
from sft.training.trainer.batching import BatchingTrainer
from sft.training.trainer.evaluating import EvaluatingTrainer
from sft.training.trainer.guarding import GuardingTrainer
from sft.training.trainer.joining import JoiningTrainer
from sft.training.trainer.neftune import Noise, noisy
from sft.training.trainer.nonfinite import Guard
from sft.training.trainer.progress import Progress
from sft.training.trainer.reporting import ReportingTrainer
from sft.training.trainer.saving import SavingTrainer
from sft.training.work import hardware_rate, work_of

log = logging.getLogger(__name__)


def _use_one_gpu(args: Any) -> None:
    """One process trains on one GPU: transformers would cut batches over all that it sees, borders of documents too."""
    if args.n_gpu > 1:
        log.warning("one of %d GPUs is used: torchrun --nproc-per-node=%d uses all", args.n_gpu, args.n_gpu)
        args._n_gpu = 1


class SftTrainer(ReportingTrainer, SavingTrainer, BatchingTrainer, GuardingTrainer, JoiningTrainer, EvaluatingTrainer):
    """A thin Trainer over prepared rows.

    Args:
        model: what `sft.model.adapters.attach.attach` gave.
        args: the training arguments; `output_dir` is the run's checkpoints directory.
        tokenizer: pads batches; it is not saved with every checkpoint.
        train: training rows.
        evaluation: evaluation rows by source; {} for no evaluation.
        callbacks: in their order.
        guard: what to do on a loss or gradient that is no number; stops the run if left out.
        **kwargs: passed on to Trainer (`compute_metrics`, `optimizers`, ...).
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        tokenizer: Any,
        train: Rows,
        evaluation: Mapping[str, Rows],
        callbacks: Sequence[Any] = (),
        guard: Guard | None = None,
        **kwargs: Any,
    ) -> None:
        self.ranks = joined()
        self.progress = Progress(self, self.ranks)
        self.guard = guard or Guard()
        self.positions = chooses_positions(model)
        self.work, self.rate = work_of(model), hardware_rate(self.ranks.count)
        self.head: Any = None  # the output layer where it is applied by chunks
        self.parts = 1  # of a batch that are computed at the same time
        self.side_by_side: SideBySide | None = None  # computes them, while the run trains
        self.padded = PaddedCollator(tokenizer.pad_token_id, padding_side="right")
        self.evaluation = dict(evaluation)
        if not self.positions:
            log.info("%s computes logits everywhere: it does not support logits_to_keep", type(model).__name__)
        _use_one_gpu(args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,  # type: ignore[arg-type]
            eval_dataset=next(iter(self.evaluation.values()), None),  # type: ignore[arg-type]
            data_collator=self.padded,
            callbacks=[self.progress, *callbacks],
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True  # the trained tokens of the whole step are counted for compute_loss
        self.loss_is_scaled_for_ga = True
        alpha, self.neftune_noise_alpha = self.neftune_noise_alpha, None  # transformers' depends on the layout
        self.noise = Noise(alpha) if alpha else None
        self.lengths = getattr(train, "lengths", None)  # tokens of each row
        self.effective_batch = self.args.train_batch_size * self.args.gradient_accumulation_steps

    def attention_for(self, asked: str | None) -> str | None:
        """The attention to lay batches out for; None: the cheapest that the model takes."""
        return asked

    def lay_out(self, layout: Layout) -> None:
        """Make batches and compute losses in this way."""
        self.data_collator = layout.collator(self.padded.pad_token_id)
        chunked = layout.chunked and not self._gathers_within_forward()
        self.head = output_layer(self.model) if chunked else None  # type: ignore[arg-type]
        self.parts = self._parts(layout)

    def _parts(self, layout: Layout) -> int:
        """Of a batch that are computed at the same time."""
        asked = getattr(self.args, "cpu_parts", 1)
        if not layout.parallel or not self._calls_freely():
            if asked not in ("auto", 1):
                log.warning(
                    "trainer.cpu_parts=%s: batches are computed whole. Parts are for one process on the CPU, documents "
                    "end to end, no dropout, no noise, no checkpointing, nothing compiled",
                    asked,
                )
            return 1
        with self.accelerator.autocast():
            parts = parts_for(asked, self.model)
        if parts > 1:
            log.info("the documents of a batch are computed in %d parts at the same time", parts)
        return parts

    def _calls_freely(self) -> bool:
        """Whether the model is called as it is: all of it on the CPU, not compiled, nothing computed again."""
        args, weights = self.args, self.model.parameters()  # type: ignore[union-attr]
        if self._gathers_within_forward() or any(weight.device.type != "cpu" for weight in weights):
            return False
        return not (self.ranks.many or args.torch_compile or args.gradient_checkpointing or self.noise)

    def _gathers_within_forward(self) -> bool:
        """Whether the output layer has to be applied inside the model's own forward pass: its weights are a share."""
        return spreads({"trainer": {"fsdp": self.is_fsdp_enabled, "deepspeed": self.args.deepspeed}})

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with noise on the embeddings where `neftune_noise_alpha` asks for it."""
        with (
            self.joined() as alone,
            noisy(self.model, self.noise),
            computed_in(self.parts if alone else 1, self.work) as self.side_by_side,
        ):
            return super().train(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The batch's share of the step's loss: its sum over the trained tokens of the whole accumulated batch.

        So the loss does not depend on how a step is split into batches, accumulation or ranks.
        """
        batch, about = split_batch(inputs)
        if self.noise is not None:
            self.noise.of(batch)
        with (
            self.accelerator.autocast()
        ):  # accelerate's covers the model's forward alone, not an output layer by chunks
            parts = self.side_by_side.parts(batch) if self.side_by_side and not return_outputs else [batch]
            if self.side_by_side and len(parts) > 1:
                loss, outputs = self.side_by_side.loss(model, parts, self.positions, self.head), None
            else:
                loss, outputs = summed_loss(model, batch, self.positions, self.head)
        if num_items_in_batch is None:
            num_items_in_batch = (batch["shift_labels"] != IGNORE).sum()
        loss = loss / torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1)
        if self.args.average_tokens_across_devices:
            loss = (
                loss * self.accelerator.num_processes
            )  # ranks' gradients are averaged, and the count is of all of them
        self.look(model, loss, batch, about)
        return (loss, outputs) if return_outputs else loss
