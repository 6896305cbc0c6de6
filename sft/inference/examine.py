"""One model's figures on evaluation rows: loss by source, answers and their scores."""

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
from sft.inference.rows import EvaluationRows
from sft.inference.subject import Subject

log = logging.getLogger(__name__)


@dataclass
class Figures:
    """What was measured of one model.

    Attributes:
        loss: loss, perplexity and token accuracy, by source where there are several; {} where it was left out.
        answers: its answers, None where none were asked for.
        benchmarks: what lm-eval's tasks found, None where none were asked for.
    """

    loss: dict[str, float] = field(default_factory=dict)
    answers: Answers | None = None
    benchmarks: Benchmarks | None = None

    def metrics(self) -> dict[str, Any]:
        """All figures, flat; `eval_fields` has the share of right values of each field of JSON answers."""
        benched = self.benchmarks.metrics() if self.benchmarks else {}
        if self.answers is None or not self.answers.rows:
            return {**self.loss, **benched}
        found = {**self.loss, **benched, **self.answers.metrics(), "answer_seconds": self.answers.seconds}
        fields = self.answers.fields()
        return {**found, "eval_fields": fields} if fields else found


def examine(
    model: Any, rows: EvaluationRows, spec: Evaluation, *, batch_size: int, autocast: Any, seed: int
) -> Figures:
    """Measure a model.

    Args:
        model: as `Subject.load` gives it.
        rows: what it is measured on.
        spec: what is measured.
        batch_size: rows side by side for the loss.
        autocast: the torch.dtype that training computed in, None for that of the weights.
        seed: of draws.
    """
    figures = Figures()
    if spec.measures_loss:
        with _computing_in(autocast, model):
            head = _as_in_training(model, rows)
            figures.loss = evaluate_loss(
                model, rows.rows, batch_size=batch_size, progress=told_now_and_then("loss", "rows"), head=head
            )
    if spec.generates:
        reading = rows.reading
        conversations = rows.conversations(spec.max_samples)
        figures.answers = evaluate_generation(
            model,
            reading.tokenizer,
            reading.template,
            conversations,
            spec,
            seed=seed,
            progress=told_now_and_then("answers", "rows"),
        )
    if spec.benchmarks is not None:
        figures.benchmarks = run_benchmarks(model, rows.reading.tokenizer, spec.benchmarks)
    return figures


def examine_before(
    subject: Subject, model: Any, rows: EvaluationRows, spec: Evaluation, **settings: Any
) -> Figures | None:
    """The same of the model that training started from; None where that is not known.

    Args:
        subject: the trained model.
        model: it, loaded; an adapter is switched off meanwhile. None after it was let go of, to make room.
        **settings: of `examine`.
    """
    spec = spec.of_before()
    if model is not None and hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            return examine(model, rows, spec, **settings)
    base = subject.base()
    if base is None:
        log.warning("evaluation.before: no training is recorded with %s, so there is no before", subject.name)
        return None
    return examine(base.load(rows.reading.tokenizer, rows.control), rows, spec, **settings)


def _as_in_training(model: Any, rows: EvaluationRows) -> Any:
    """Lay batches out as training does, whose rounding is then the same; gives the output layer to apply by chunks."""
    from sft.model.head import output_layer
    from sft.training.layout.layout import lay_out

    attention = rows.reading.model.attn_implementation
    return output_layer(model) if lay_out(model, list(rows.rows.values()), attention).chunked else None


@contextlib.contextmanager
def _computing_in(dtype: Any, model: Any) -> Iterator[None]:
    import torch

    device = next(model.parameters()).device.type
    with torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        yield


def batch_size_of(config: Mapping[str, Any]) -> int:
    """Rows side by side: those of the training's evaluation, else of the answers."""
    return int((config.get("trainer") or {}).get("per_device_eval_batch_size") or 8)
