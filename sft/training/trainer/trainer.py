"""transformers.Trainer with our loss, our evaluation, complete checkpoints, and no silent NaN."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import TRAINER_STATE_NAME

from sft.config.checks.conflicts import spreads
from sft.data.batches.collate import PaddedCollator, split_batch
from sft.data.documents import IGNORE, Rows
from sft.distributed.ranks import joined
from sft.kernels.cross_entropy import summed_loss
from sft.model.head import chooses_positions, output_layer
from sft.run import checkpoint
from sft.training.callbacks.state import collect, restore
from sft.training.layout.layout import Layout
from sft.training.layout.microbatches import SideBySide, computed_in, parts_for
from sft.training.trainer.batching import BatchingTrainer
from sft.training.trainer.evaluating import EvaluatingTrainer
from sft.training.trainer.joining import JoiningTrainer
from sft.training.trainer.neftune import Noise, noisy
from sft.training.trainer.nonfinite import IN_A_ROW, Guard, NonFinite
from sft.training.trainer.progress import Progress
from sft.training.trainer.restoring import RestoringTrainer
from sft.training.trainer.shrinking import ShrinkingTrainer
from sft.training.work import hardware_rate, work_of

log = logging.getLogger(__name__)


def _use_one_gpu(args: Any) -> None:
    """One process trains on one GPU: transformers would cut batches over all that it sees, borders of documents too."""
    if args.n_gpu > 1:
        log.warning("one of %d GPUs is used: torchrun --nproc-per-node=%d uses all", args.n_gpu, args.n_gpu)
        args._n_gpu = 1


class SftTrainer(RestoringTrainer, BatchingTrainer, ShrinkingTrainer, JoiningTrainer, EvaluatingTrainer):
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
        self._window = 1  # steps that a logged loss is the mean of

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

    # -- loss ----------------------------------------------------------------------------------------------------------
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

    def look(self, model: Any, loss: Any, batch: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Count a training batch and see that its loss is a number."""
        if model.training:
            if not torch.isfinite(loss):
                self.guard.meet("loss", about, self.state.global_step + 1)
            self.progress.count(batch, about)

    # -- steps ---------------------------------------------------------------------------------------------------------
    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The batches of a step; what must be known when the step fails is noted."""
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.guard.begin(found[0])
        self._note_step()
        return found

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm; without gradients, and so without an update, where the step is left out."""
        norm = super()._get_grad_norm(model, grad_norm)
        scaled = self.accelerator.scaler is not None  # fp16: its scaler leaves steps out by itself and lowers the scale
        if self.guard.found is None and not scaled and not torch.isfinite(torch.as_tensor(norm)):
            self.guard.meet("gradient", self.guard.about_step(), self.state.global_step + 1)
        self.guard.settle(self.state.global_step + 1)
        if self.guard.found is None:
            self.progress.skipped_in_a_row = 0
            return norm
        self.progress.skipped_steps += 1
        self.progress.skipped_in_a_row += 1
        if self.progress.skipped_in_a_row >= IN_A_ROW:
            raise NonFinite(str(self.guard.found), f"{IN_A_ROW} steps in a row", self.state.global_step + 1)
        self._tr_loss = self._loss_before
        if not scaled:
            model.zero_grad(set_to_none=True)  # optimizers pass over what has no gradient, decay and moments included
        return None

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._window = self.state.global_step - self._globalstep_last_logged
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        found = super()._init_training_state(*args, **kwargs)
        self.state.train_batch_size = self._train_batch_size  # a checkpoint's may be from before memory ran out
        return found

    # -- figures -------------------------------------------------------------------------------------------------------
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a line, training lines with the speed so far."""
        if "loss" in logs:
            self._without_skipped(logs)
            if self.progress.tokens_per_second:
                logs["tokens_per_second"] = round(self.progress.tokens_per_second, 1)
                logs["trained_tokens_per_second"] = round(self.progress.trained_tokens_per_second or 0.0, 1)
                utilization = self.progress.utilization(self.work, self.rate)
                if utilization is not None:
                    logs["model_flop_utilization"] = round(utilization, 4)
        super().log(logs, start_time)

    def _without_skipped(self, logs: dict[str, float]) -> None:
        """Make a logged loss the mean of the steps that were made; no loss where all were left out."""
        skipped = self.progress.skipped_steps - self.progress.skipped_logged
        if not skipped:
            return
        self.progress.skipped_logged = self.progress.skipped_steps
        loss, made = logs.pop("loss"), self._window - skipped
        if made > 0:
            logs["loss"] = loss * self._window / made
        logs["skipped_steps"] = self.progress.skipped_steps

    # -- checkpoints ---------------------------------------------------------------------------------------------------
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint that is complete or absent, and drop the oldest beyond save_total_limit."""
        self.store_flos()
        root, step, state = Path(str(self.args.output_dir)), self.state.global_step, self.state
        self.progress.unlogged_loss = self.ranks.gather(float(self._tr_loss))
        self.progress.last_logged = self._globalstep_last_logged
        self._note_checkpoint()
        main, barrier, needed = self.args.should_save, self.accelerator.wait_for_everyone, self._checkpoint_bytes()
        with checkpoint.writing(root, step, main=main, barrier=barrier, needed=needed) as directory:
            self.save_model(str(directory), _internal_call=True)
            if state.best_global_step:
                best = root / checkpoint.name(state.best_global_step)
                if best.is_dir() or state.best_global_step == step:
                    state.best_model_checkpoint = str(best)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(directory))
                self._save_scaler(str(directory))
                self._save_rng_state(str(directory))
            if self.args.should_save:
                state.stateful_callbacks = collect([*self.callback_handler.callbacks, self.control])  # type: ignore[assignment]
                state.save_to_json(str(directory / TRAINER_STATE_NAME))
        if self.args.should_save:
            keep = [state.best_model_checkpoint] if state.best_model_checkpoint else []
            checkpoint.prune(root, self.args.save_total_limit, keep=keep)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # a pickle of all arguments, which nothing here reads; config.resolved.yaml says the same
        (Path(str(output_dir or self.args.output_dir)) / "training_args.bin").unlink(missing_ok=True)

    def _load_callback_state(self) -> None:
        """Callbacks keep their place and their run directory; only their state comes from the checkpoint."""
        states: Any = self.state.stateful_callbacks
        restore([*self.callback_handler.callbacks, self.control], states or {})
