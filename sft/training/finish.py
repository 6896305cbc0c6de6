"""The end of a run: final evaluation, weights, metrics, plots and model card."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sft.distributed.sharding import gather_full_weights
from sft.drawing.curves import write_curves
from sft.evaluation.rows import write_rows
from sft.run.metrics import Metrics
from sft.run.phases import current
from sft.run.record import now
from sft.run.trackers.base import Tracker
from sft.training.answers import AnswerEvaluation
from sft.training.inputs import Inputs
from sft.training.job import Job
from sft.training.outputs import write_card, write_weights
from sft.training.result import Result

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """A run after its last step.

    Attributes:
        job, inputs: the job and its inputs.
        trainer: after training.
        info: the run's training_info, to be completed.
        answer_evaluation: the generated answers before and after training.
        tracker: receives the metrics.
        objective: name of the metric by which runs are compared.
        started: when the run began, in seconds since the epoch.
    """

    job: Job
    inputs: Inputs
    trainer: Any
    info: Any
    answer_evaluation: AnswerEvaluation
    tracker: Tracker
    objective: str
    started: float


def finish(trained: TrainedRun) -> Result:
    """Evaluate the trained model, write everything that a finished run contains, and return the result.

    All processes evaluate; then rank 0 does the rest, and the others receive its result.
    """
    from sft.run import memory

    trainer = trained.trainer
    evaluated = _final_evaluation(trainer)
    peak, weights = trainer.ranks.all_reduce_max(memory.peak_bytes()), gather_full_weights(trainer)
    return trainer.ranks.run_on_main_and_broadcast(lambda: _write(trained, evaluated, peak, weights))


def _write(trained: TrainedRun, evaluated: dict[str, float], peak: int, whole: Mapping[str, Any] | None) -> Result:
    job, inputs, trainer, info = trained.job, trained.inputs, trained.trainer, trained.info
    run, config = job.run, job.config
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = write_weights(run, model, inputs, whole)
    evaluated |= trained.answer_evaluation.evaluate_after(model)
    trained.answer_evaluation.write(run)

    metrics = _metrics(trainer, evaluated, trained.started, Metrics.read(run), peak)
    info.finished = now()
    info.write(run)
    info.write_beside(weights)
    write_card(config, info, metrics, weights, whole=weights == run.model)
    if not run.metrics_jsonl.exists():
        for line in trainer.state.log_history:
            run.append_jsonl(run.metrics_jsonl, line)
    write_curves(run, title=str(config.name))
    write_rows(run, _row_losses(trainer), trained.answer_evaluation.exact_matches())
    if config.save_merged_model:
        _save_merged(job, inputs, info, metrics)
    figures = metrics.as_dict()
    trained.tracker.log(
        {key: value for key, value in figures.items() if isinstance(value, float)}, trainer.state.global_step
    )
    kept = [weights, run.merged] if config.save_merged_model else [weights]
    for directory in kept:
        trained.tracker.artifact(directory, f"{config.name}-{directory.name}", directory.name)
    metrics.write(run)
    if figures.get(trained.objective) is None:
        log.warning("the run has no metric %s, its objective", trained.objective)
    return Result(run.path, figures, trained.objective, figures.get(trained.objective))


def _final_evaluation(trainer: Any) -> dict[str, float]:
    """The evaluation of the current weights; the trainer's own last one if it was of these weights."""
    if not trainer.evaluation:
        return {}
    best_loaded = trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None
    for line in reversed(trainer.state.log_history):
        if "eval_loss" in line and line.get("step") == trainer.state.global_step and not best_loaded:
            if trainer.row_totals is None:  # it was made before the run was interrupted
                trainer.measure(trainer.evaluation)
            return {key: value for key, value in line.items() if key.startswith("eval_")}
    return {key: value for key, value in trainer.evaluate().items() if key.startswith("eval_")}


def _row_losses(trainer: Any) -> dict[str, list[tuple[float, int, int]]]:
    """Of each source (loss, right tokens, tokens) by row, at the final evaluation."""
    totals = trainer.row_totals or {}
    return {name: [(row.loss, row.correct, row.tokens) for row in rows] for name, rows in totals.items()}


def _metrics(trainer: Any, evaluated: dict[str, float], started: float, before: Metrics | None, peak: int) -> Metrics:
    """The run's metrics, summed over sessions where that makes sense."""
    history, progress = trainer.state.log_history, trainer.progress
    earlier = before.total_seconds if before and before.total_seconds else 0.0
    named = ("eval_loss", "eval_perplexity", "eval_token_accuracy")
    return Metrics(
        status="finished",
        steps=trainer.state.global_step,
        epochs=trainer.state.epoch,
        train_loss=_mean_loss(history),
        **{name: evaluated.get(name) for name in named},  # type: ignore[arg-type]
        total_tokens=progress.total_tokens,
        trained_tokens=progress.trained_tokens,
        tokens_per_second=progress.tokens_per_second,
        peak_memory_bytes=peak,
        train_seconds=progress.train_seconds,
        total_seconds=earlier + time.time() - started,
        extra={
            **_speed(trainer),
            **{key: value for key, value in evaluated.items() if key not in named},
            **({"skipped_steps": progress.skipped_steps} if trainer.guard.policy == "skip" else {}),
        },
    )


def _speed(trainer: Any) -> dict[str, Any]:
    """Efficiency metrics: of training steps only, and the seconds of start-up by phase."""
    progress, phases = trainer.progress, current()
    found = {
        "trained_tokens_per_second": progress.trained_tokens_per_second,
        "padding": progress.padding,
        "shared": progress.shared,
        "model_flop_utilization": progress.utilization(trainer.flops, trainer.peak_flops),
        "start_seconds": phases.figures() if phases is not None else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _mean_loss(history: list[dict[str, Any]]) -> float | None:
    """The mean over all completed steps: each logged value is the mean since the previous one, skipped steps
    excluded."""
    total, made, last, skipped = 0.0, 0, 0, 0
    for line in history:
        if "loss" not in line and "skipped_steps" not in line:
            continue
        now = line.get("skipped_steps", skipped)
        steps = line["step"] - last - (now - skipped)
        total, made = total + line.get("loss", 0.0) * steps, made + steps
        last, skipped = line["step"], now
    return total / made if made else None


def _save_merged(job: Job, inputs: Inputs, info: Any, metrics: Metrics) -> None:
    from sft.export.merged import Provenance, write_merged

    provenance = Provenance(info, inputs.tokenizer, inputs.template, job.config, metrics)
    write_merged(job.run.adapter, inputs.model, provenance, job.run.merged, job.run)
