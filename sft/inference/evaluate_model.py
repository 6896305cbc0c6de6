"""One model's metrics on evaluation rows: loss by source, answers and their scores."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sft.evaluation.answers import Answers, evaluate_generation
from sft.evaluation.benchmarks import Benchmarks, run_benchmarks
from sft.evaluation.loss import evaluate_loss
from sft.evaluation.progress import told_now_and_then
from sft.evaluation.spec import Evaluation
from sft.inference.model_source import ModelSource
from sft.inference.rows import EvaluationRows

log = logging.getLogger(__name__)


@dataclass
class ModelMetrics:
    """The metrics of one model.

    Attributes:
        loss: loss, perplexity and token accuracy, by source where there are several; {} where it was left out.
        answers: its answers, None where none were generated.
        benchmarks: results of lm-eval's tasks, None where there are none.
    """

    loss: dict[str, float] = field(default_factory=dict)
    answers: Answers | None = None
    benchmarks: Benchmarks | None = None

    def metrics(self) -> dict[str, Any]:
        """All metrics, flat; `eval_fields` has the share of correct values of each field of JSON answers."""
        benched = self.benchmarks.metrics() if self.benchmarks else {}
        if self.answers is None or not self.answers.rows:
            return {**self.loss, **benched}
        found = {**self.loss, **benched, **self.answers.metrics(), "answer_seconds": self.answers.seconds}
        fields = self.answers.fields()
        return {**found, "eval_fields": fields} if fields else found


def evaluate_model(
    model: Any, rows: EvaluationRows, spec: Evaluation, *, batch_size: int, autocast: Any, seed: int
) -> ModelMetrics:
    """Evaluate a model.

    Args:
        model: as `ModelSource.load` gives it.
        rows: the evaluation rows.
        spec: what to evaluate.
        batch_size: rows per batch for the loss.
        autocast: the torch.dtype of autocast in training, None for no autocast.
        seed: of sampling.
    """
    figures = ModelMetrics()
    if spec.measures_loss:
        with _computing_in(autocast, model):
            head = _as_in_training(model, rows)
            figures.loss = evaluate_loss(
                model, rows.rows, batch_size=batch_size, progress=told_now_and_then("loss", "rows"), head=head
            )
    if spec.generates:
        preprocessing = rows.preprocessing
        conversations = rows.conversations(spec.max_samples)
        figures.answers = evaluate_generation(
            model,
            preprocessing.tokenizer,
            preprocessing.template,
            conversations,
            spec,
            seed=seed,
            progress=told_now_and_then("answers", "rows"),
        )
    if spec.benchmarks is not None:
        figures.benchmarks = run_benchmarks(model, rows.preprocessing.tokenizer, spec.benchmarks)
    return figures


def evaluate_base(
    model_source: ModelSource, model: Any, rows: EvaluationRows, spec: Evaluation, **settings: Any
) -> ModelMetrics | None:
    """The same for the model before training; None where that is not known.

    Args:
        model_source: the trained model.
        model: the loaded model, whose adapter is disabled meanwhile. None if it was freed to make room.
        **settings: of `evaluate_model`.
    """
    spec = spec.of_before()
    if model is not None and hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            return evaluate_model(model, rows, spec, **settings)
    base = model_source.base()
    if base is None:
        log.warning(
            "evaluation.before: no training is recorded for %s, so there is no model before training", model_source.name
        )
        return None
    return evaluate_model(base.load(rows.preprocessing.tokenizer, rows.control), rows, spec, **settings)


def _as_in_training(model: Any, rows: EvaluationRows) -> Any:
    """Use training's batch layout, so that rounding is the same; returns the output layer to apply in chunks."""
    from sft.model.head import output_layer
    from sft.training.layout.layout import choose_layout

    attention = rows.preprocessing.model.attn_implementation
    return output_layer(model) if choose_layout(model, list(rows.rows.values()), attention).chunked else None


@contextlib.contextmanager
def _computing_in(dtype: Any, model: Any) -> Iterator[None]:
    import torch

    device = next(model.parameters()).device.type
    with torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        yield


def batch_size_of(config: Mapping[str, Any]) -> int:
    """The batch size: that of training's evaluation, else that of the answers."""
    return int((config.get("trainer") or {}).get("per_device_eval_batch_size") or 8)
