"""The end of a run: the final evaluation, the weights, the figures, the pictures and the card."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sft.distributed.sharding import whole_weights
from sft.drawing.curves import write_curves
from sft.evaluation.rows import write_rows
from sft.run.metrics import Metrics
from sft.run.phases import current
from sft.run.record import now
from sft.run.trackers.base import Tracker
from sft.training.answers import Examination
from sft.training.inputs import Inputs
from sft.training.job import Job
from sft.training.outputs import write_card, write_weights
from sft.training.result import Result

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A run after its last step.

    Attributes:
        job, inputs: what was run, on what.
        trainer: after its training.
        info: the run's training_info, to be completed.
        examination: the questions asked before and after.
        tracker: where figures go.
        objective: name of the figure that the run is judged by.
        started: when the run began, seconds since the epoch.
    """

    job: Job
    inputs: Inputs
    trainer: Any
    info: Any
    examination: Examination
    tracker: Tracker
    objective: str
    started: float


def finish(trained: Trained) -> Result:
    """Evaluate what was trained, write everything that a finished run has, and give its figures.

    Of several processes all evaluate; then rank 0 does the rest, and the others have its result.
    """
    from sft.run import memory

    trainer = trained.trainer
    evaluated = _final_evaluation(trainer)
    peak, weights = trainer.ranks.most(memory.peak_bytes()), whole_weights(trainer)
    return trainer.ranks.decided(lambda: _write(trained, evaluated, peak, weights))


def _write(trained: Trained, evaluated: dict[str, float], peak: int, whole: Mapping[str, Any] | None) -> Result:
    job, inputs, trainer, info = trained.job, trained.inputs, trained.trainer, trained.info
    run, config = job.run, job.config
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = write_weights(run, model, inputs, whole)
    evaluated |= trained.examination.ask_after(model)
    trained.examination.write(run)

    metrics = _metrics(trainer, evaluated, trained.started, Metrics.read(run), peak)
    info.finished = now()
    info.write(run)
    info.write_beside(weights)
    write_card(config, info, metrics, weights, whole=weights == run.model)
    if not run.metrics_jsonl.exists():
        for line in trainer.state.log_history:
            run.append_jsonl(run.metrics_jsonl, line)
    write_curves(run, title=str(config["name"]))
    write_rows(run, _row_losses(trainer), trained.examination.exact_matches())
    if config["save_merged_model"]:
        _save_merged(job, inputs, info, metrics)
    figures = metrics.as_dict()
    trained.tracker.log(
        {key: value for key, value in figures.items() if isinstance(value, float)}, trainer.state.global_step
    )
    kept = [weights, run.merged] if config["save_merged_model"] else [weights]
    for directory in kept:
        trained.tracker.artifact(directory, f"{config['name']}-{directory.name}", directory.name)
    metrics.write(run)
    if figures.get(trained.objective) is None:
        log.warning("the run has no figure %s to be judged by", trained.objective)
    return Result(run.path, figures, trained.objective, figures.get(trained.objective))


def _final_evaluation(trainer: Any) -> dict[str, float]:
    """The evaluation of the weights as they are now; the trainer's own last one where it was of these."""
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
    """The run's figures, those of earlier sessions added where they add up."""
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
    """How well the time was used: figures of training steps alone, and the seconds of the start by phase."""
    progress, phases = trainer.progress, current()
    found = {
        "trained_tokens_per_second": progress.trained_tokens_per_second,
        "padding": progress.padding,
        "shared": progress.shared,
        "model_flop_utilization": progress.utilization(trainer.work, trainer.rate),
        "start_seconds": phases.figures() if phases is not None else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _mean_loss(history: list[dict[str, Any]]) -> float | None:
    """The mean over all steps made: each logged value is the mean of those since the one before, left out ones apart."""
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
