"""transformers.Trainer with our loss, our evaluation, atomic checkpoints, and no silent NaN."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sft.config.checks.conflicts import shards_weights
from sft.data.batches.collate import PaddedCollator, split_batch
from sft.data.documents import IGNORE, Rows
from sft.distributed.ranks import process_group
from sft.kernels.cross_entropy import summed_loss
from sft.model.head import output_layer, supports_logits_to_keep
from sft.training.flops import flops_per_token, peak_flops
from sft.training.layout.layout import Layout
from sft.training.layout.microbatches import ParallelParts, number_of_parts, parallel_parts
from sft.training.trainer.batching import BatchingTrainer
from sft.training.trainer.evaluating import EvaluatingTrainer
from sft.training.trainer.joining import JoiningTrainer
from sft.training.trainer.neftune import Noise, noisy
from sft.training.trainer.nonfinite import Guard
from sft.training.trainer.progress import Progress
from sft.training.trainer.reporting import ReportingTrainer
from sft.training.trainer.saving import SavingTrainer

log = logging.getLogger(__name__)


def _use_one_gpu(args: Any) -> None:
    """Train on one GPU per process: transformers would split batches over all visible GPUs, even within documents."""
    if args.n_gpu > 1:
        log.warning("one of %d GPUs is used: torchrun --nproc-per-node=%d uses all", args.n_gpu, args.n_gpu)
        args._n_gpu = 1


class SftTrainer(ReportingTrainer, SavingTrainer, BatchingTrainer, JoiningTrainer, EvaluatingTrainer):
    """A Trainer for prepared rows.

    Args:
        model: as returned by `sft.model.adapters.attach.attach`.
        args: the training arguments; `output_dir` is the run's checkpoints directory.
        tokenizer: pads batches; it is not saved with every checkpoint.
        train: training rows.
        evaluation: evaluation rows by source; {} for no evaluation.
        callbacks: in their order.
        guard: what to do on a non-finite loss or gradient; stops the run if left out.
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
        self.ranks = process_group()
        self.progress = Progress(self, self.ranks)
        self.guard = guard or Guard()
        self.positions = supports_logits_to_keep(model)
        self.flops, self.peak_flops = flops_per_token(model), peak_flops(self.ranks.world_size)
        self.head: Any = None  # the output layer, if it is applied by chunks
        self.parts = 1  # concurrent parts of a batch
        self.parallel_parts: ParallelParts | None = None  # computes them during training
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
        alpha, self.neftune_noise_alpha = self.neftune_noise_alpha, None  # transformers' noise depends on the layout
        self.noise = Noise(alpha) if alpha else None
        self.lengths = getattr(train, "lengths", None)  # tokens of each row
        self.effective_batch = self.args.train_batch_size * self.args.gradient_accumulation_steps

    def attention_for(self, asked: str | None) -> str | None:
        """The attention for the batch layout; None: the cheapest that the model supports."""
        return asked

    def apply_layout(self, layout: Layout) -> None:
        """Build batches and compute losses with this layout."""
        self.data_collator = layout.collator(self.padded.pad_token_id)
        chunked = layout.chunked and not self._head_needs_gathering()
        self.head = output_layer(self.model) if chunked else None  # type: ignore[arg-type]
        self.parts = self._parts(layout)

    def _parts(self, layout: Layout) -> int:
        """The number of concurrent parts of a batch."""
        asked = getattr(self.args, "cpu_parts", 1)
        if not layout.parallel or not self._can_split_batches():
            if asked not in ("auto", 1):
                log.warning(
                    "trainer.cpu_parts=%s is ignored: parts need a single process on the CPU and padding-free batches, without "
                    "dropout, noise, checkpointing or compilation",
                    asked,
                )
            return 1
        with self.accelerator.autocast():
            parts = number_of_parts(asked, self.model)
        if parts > 1:
            log.info("the documents of a batch are computed in %d concurrent parts", parts)
        return parts

    def _can_split_batches(self) -> bool:
        """Whether the model is called directly: entirely on the CPU, not compiled, without gradient checkpointing."""
        args, weights = self.args, self.model.parameters()  # type: ignore[union-attr]
        if self._head_needs_gathering() or any(weight.device.type != "cpu" for weight in weights):
            return False
        return not (self.ranks.is_distributed or args.torch_compile or args.gradient_checkpointing or self.noise)

    def _head_needs_gathering(self) -> bool:
        """Whether the output layer has to be applied inside the model's own forward pass, because its weights are
        sharded."""
        return shards_weights({"trainer": {"fsdp": self.is_fsdp_enabled, "deepspeed": self.args.deepspeed}})

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with noise on the embeddings if `neftune_noise_alpha` is set."""
        with (
            self.joined() as alone,
            noisy(self.model, self.noise),
            parallel_parts(self.parts if alone else 1, self.flops) as self.parallel_parts,
        ):
            return super().train(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The batch's share of the step's loss: its sum divided by the trained tokens of the whole accumulated batch.

        So the loss does not depend on how a step is split into batches or over ranks.
        """
        batch, about = split_batch(inputs)
        if self.noise is not None:
            self.noise.of(batch)
        with (
            self.accelerator.autocast()
        ):  # accelerate's autocast covers only the model's forward, not an output layer applied by chunks
            parts = self.parallel_parts.parts(batch) if self.parallel_parts and not return_outputs else [batch]
            if self.parallel_parts and len(parts) > 1:
                loss, outputs = self.parallel_parts.loss(model, parts, self.positions, self.head), None
            else:
                loss, outputs = summed_loss(model, batch, self.positions, self.head)
        if num_items_in_batch is None:
            num_items_in_batch = (batch["shift_labels"] != IGNORE).sum()
        loss = loss / torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1)
        if self.args.average_tokens_across_devices:
            loss = (
                loss * self.accelerator.num_processes
            )  # gradients are averaged over ranks, and the count is summed over them
        self.check_loss(model, loss, batch, about)
        return (loss, outputs) if return_outputs else loss
