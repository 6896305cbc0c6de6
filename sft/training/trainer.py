"""transformers.Trainer with our loss, our evaluation, complete checkpoints, and no silent NaN."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

from sft.data.collate import PaddedCollator, split_batch
from sft.data.documents import Rows
from sft.evaluation.loss import evaluate_loss
from sft.run import checkpoint
from sft.training.callbacks.state import collect, restore
from sft.training.loss import chooses_positions, summed_loss
from sft.training.nonfinite import NonFinite, describe
from sft.training.progress import Progress

log = logging.getLogger(__name__)


class SftTrainer(Trainer):
    """A thin Trainer over prepared rows.

    Args:
        model: what `sft.model.adapter.attach` gave.
        args: the training arguments; `output_dir` is the run's checkpoints directory.
        tokenizer: pads batches; it is not saved with every checkpoint.
        train: training rows.
        evaluation: evaluation rows by source; {} for no evaluation.
        callbacks: in their order.
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
        **kwargs: Any,
    ) -> None:
        self.progress = Progress()
        self.positions = chooses_positions(model)
        self.evaluation = dict(evaluation)
        if not self.positions:
            log.info("%s computes logits everywhere: it does not choose positions", type(model).__name__)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,  # type: ignore[arg-type]
            eval_dataset=next(iter(self.evaluation.values()), None),  # type: ignore[arg-type]
            data_collator=PaddedCollator(tokenizer.pad_token_id, padding_side="right"),
            callbacks=[self.progress, *callbacks],
            **kwargs,
        )
        self.model_accepts_loss_kwargs = True  # the trained tokens of the whole step are counted for compute_loss
        self.loss_is_scaled_for_ga = True

    # -- loss ----------------------------------------------------------------------------------------------------------
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The batch's share of the step's loss: its sum over the trained tokens of the whole accumulated batch.

        So the loss does not depend on how a step is split into batches, accumulation or ranks.
        """
        batch, about = split_batch(inputs)
        loss, outputs = summed_loss(model, batch, self.positions)
        if num_items_in_batch is None:
            num_items_in_batch = (batch["shift_labels"] != -100).sum()
        loss = loss / torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1)
        if self.args.average_tokens_across_devices:
            loss = (
                loss * self.accelerator.num_processes
            )  # ranks' gradients are averaged, and the count is of all of them
        if model.training:
            if not torch.isfinite(loss):
                raise NonFinite("loss", describe(about), self.state.global_step + 1)
            self.progress.count(batch, about)
        return (loss, outputs) if return_outputs else loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise NonFinite("gradient", "", self.state.global_step + 1)
        return norm

    # -- evaluation ----------------------------------------------------------------------------------------------------
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss, perplexity and token accuracy over the evaluation rows, each source apart; logged and given back.

        A `compute_metrics` sees predictions as in transformers, from its own evaluation loop.
        """
        sources = self.evaluation if eval_dataset is None else {"eval": eval_dataset}
        with self.progress.evaluating(), self.compute_loss_context_manager():
            figures = evaluate_loss(
                self.accelerator.unwrap_model(self.model_wrapped),
                sources,
                batch_size=self.args.per_device_eval_batch_size,
                prefix=f"{metric_key_prefix}_",
            )
        if self.compute_metrics is not None:
            figures |= self._predicted_metrics(sources, metric_key_prefix)
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def _predicted_metrics(self, sources: Mapping[str, Any], prefix: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, rows in sources.items():
            loader = self.get_eval_dataloader(rows)
            part = prefix if len(sources) == 1 else f"{prefix}_{name}"
            output = self.evaluation_loop(loader, "evaluation", prediction_loss_only=False, metric_key_prefix=part)
            found |= {key: value for key, value in (output.metrics or {}).items() if not key.endswith("_loss")}
        return found

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """Full logits and labels, for `compute_metrics`."""
        batch, _ = split_batch(self._prepare_inputs(inputs))
        model_inputs = {key: value for key, value in batch.items() if key not in ("labels", "shift_labels")}
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**model_inputs, use_cache=False).logits
        wanted = batch["shift_labels"] != -100
        loss = torch.nn.functional.cross_entropy(logits[wanted].float(), batch["shift_labels"][wanted])
        return (loss, None, None) if prediction_loss_only else (loss, logits, batch["labels"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a line, training lines with the speed so far."""
        if "loss" in logs and self.progress.tokens_per_second:
            logs["tokens_per_second"] = round(self.progress.tokens_per_second, 1)
        super().log(logs, start_time)

    # -- checkpoints ---------------------------------------------------------------------------------------------------
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint that is complete or absent, and drop the oldest beyond save_total_limit."""
        self.store_flos()
        root, step, state = Path(str(self.args.output_dir)), self.state.global_step, self.state
        with checkpoint.writing(
            root, step, main=self.args.should_save, barrier=self.accelerator.wait_for_everyone
        ) as directory:
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
