"""Evaluation during training: loss per source, and predictions for `compute_metrics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Trainer

from sft.data.batches.collate import PaddedCollator, split_batch
from sft.data.documents import IGNORE
from sft.distributed.ranks import Ranks
from sft.evaluation.loss import Outputs, TokenTotals, evaluate_loss
from sft.training.trainer.progress import Progress


class EvaluatingTrainer(Trainer):
    """A Trainer that evaluates by source.

    Attributes:
        evaluation: rows by source.
        padded: collator of padded batches, for predictions per row.
        head: the output layer, if it is applied by chunks.
        progress: does not count the time of evaluations.
        ranks: the processes that evaluate together.
        row_totals: of each source's rows, at the last evaluation.
    """

    evaluation: dict[str, Any]
    padded: PaddedCollator
    head: Any
    progress: Progress
    ranks: Ranks
    outputs_of_group: Outputs | None = None  # where other jobs' batches are computed with this one's
    row_totals: dict[str, list[TokenTotals]] | None = None  # of the last evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Log and return loss, perplexity and token accuracy over the evaluation rows, for each source.

        `compute_metrics` gets predictions as in transformers, from transformers' evaluation loop.
        """
        sources = self.evaluation if eval_dataset is None else {"eval": eval_dataset}
        figures = self.measure(sources, f"{metric_key_prefix}_")
        if self.compute_metrics is not None:
            figures |= self._predicted_metrics(sources, metric_key_prefix)
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures

    def measure(self, sources: Mapping[str, Any], prefix: str = "eval_") -> dict[str, float]:
        """Loss, perplexity and token accuracy over rows by source; each row's are kept in `row_totals`."""
        with self.progress.evaluating(), self.accelerator.autocast():
            return evaluate_loss(
                self.accelerator.unwrap_model(self.model_wrapped),
                sources,
                batch_size=self.args.per_device_eval_batch_size,
                prefix=prefix,
                head=self.head,
                ranks=self.ranks,
                outputs=self.outputs_of_group,
                keep=self._keep,
            )

    def _keep(self, totals: dict[str, list[TokenTotals]]) -> None:
        self.row_totals = totals

    def _predicted_metrics(self, sources: Mapping[str, Any], prefix: str) -> dict[str, float]:
        found: dict[str, float] = {}
        collator, self.data_collator = self.data_collator, self.padded  # predictions per row
        try:
            for name, rows in sources.items():
                loader = self.get_eval_dataloader(rows)
                part = prefix if len(sources) == 1 else f"{prefix}_{name}"
                output = self.evaluation_loop(loader, "evaluation", prediction_loss_only=False, metric_key_prefix=part)
                found |= {key: value for key, value in (output.metrics or {}).items() if not key.endswith("_loss")}
        finally:
            self.data_collator = collator
        return found

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        """Full logits and labels, for `compute_metrics`."""
        batch, _ = split_batch(self._prepare_inputs(inputs))
        model_inputs = {key: value for key, value in batch.items() if key not in ("labels", "shift_labels")}
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**model_inputs, use_cache=False).logits
        wanted = batch["shift_labels"] != IGNORE
        loss = torch.nn.functional.cross_entropy(logits[wanted].float(), batch["shift_labels"][wanted])
        return (loss, None, None) if prediction_loss_only else (loss, logits, batch["labels"])
