"""Decide what a command does in a run directory: start a new run, resume one, return a finished one, or refuse.

`decide` is the entry point of this package; it uses `finished`, `checkpoints`, `config_changes` and `identity`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.config.checks.effects import unread_without_predictions
from sft.config.checks.figures import unknown_figures
from sft.config.checks.requirements import missing
from sft.config.errors import RunFailed, UserError, raise_all
from sft.config.rank import world_size
from sft.config.run_config import RunConfig
from sft.run.directory import RunDirectory
from sft.run.metrics import Metrics
from sft.run.record import RunRecord, has_made_steps, read_record
from sft.run.snapshot import write_snapshot
from sft.training.job import Job
from sft.training.result import Result
from sft.training.resume.changeable import batch_of_a_step, effect_of
from sft.training.resume.checkpoints import INHERITED_FACTS, checkpoint_to_resume, refuse_unusable, source_of
from sft.training.resume.config_changes import refuse_changes
from sft.training.resume.finished import earlier_result
from sft.training.resume.identity import refuse_other_files, refuse_other_versions, with_recorded_day

log = logging.getLogger(__name__)

# Pairs of trainer keys: the second has no effect if the first is set, as in transformers.
_OVERRULED = (("max_steps", "num_train_epochs"), ("max_tokens_per_batch", "per_device_train_batch_size"))


@dataclass(frozen=True)
class Decision:
    """The decision on how to start.

    Attributes:
        config: the job's config, with what a resumed or replayed run takes from its origin.
        resume_from: the checkpoint's directory; None to begin at the first step.
        result: the result of an already finished run; None if there is something to train.
    """

    config: RunConfig
    resume_from: str | None = None
    result: Result | None = None


def decide(job: Job, record: RunRecord) -> Decision:
    """Decide whether a job starts, is resumed, is finished, or is refused; write its config snapshot and record.

    Raises:
        UserError, RunFailed: as `_begin`.
    """
    resume_from = _begin(job, record)
    result = earlier_result(job) if resume_from is None else None
    return Decision(with_recorded_day(job.config, job.origin or record.content), resume_from, result)


def _begin(job: Job, record: RunRecord) -> str | None:
    """Check that this config may write to the directory, and begin.

    Returns:
        The checkpoint to resume; None to start at the first step. A finished run is not touched.

    Raises:
        UserError: the run to resume has a different config, library versions or (if finished) files, has nothing left
            to train, or `resume` does not name a run.
        RunFailed: it failed earlier, in a sweep that does not retry failed jobs.
    """
    run, config = job.run, job.config
    if record.content.get("status") == "failed" and not job.retries:
        raise RunFailed(f"{record.content.get('error')}\n  failed earlier and not retried (sweep.retry_failed=false)")
    source, own = source_of(str(config.resume)), config.resume != "never" and has_made_steps(run)
    if not own:
        _start_over(job)
        record.content.clear()
    changed = {}
    if own or source is not None:
        resumed = run if own or source is None else source.run
        before = read_record(resumed)
        # first, because another number of processes changes the rows per step as well
        _refuse_other_ranks(config, before)
        processes = int(before.get("world_size") or 1), world_size()
        changed = refuse_changes(resumed, config, config.allow_changes, processes)
        refuse_other_versions(config, before)
        if own and before.get("status") == "finished" and not _is_extended(run, config, changed):
            if source is not None and source.chosen is not None:
                checkpoint_to_resume(run, source, own)  # refuses an older checkpoint of this run
            _refuse_without_effect(run, changed)
            refuse_other_files(config, before)
            return None
        for key in INHERITED_FACTS:
            if before.get(key) is not None:
                record.content.setdefault(key, before[key])
    found = checkpoint_to_resume(run, source, own) if own or source is not None else None
    if found is not None:
        refuse_unusable(found, config)
    elif own and before.get("status") == "finished":
        _refuse_without_checkpoint(run)
    write_snapshot(run, config, job.unresolved, job.hydra, anew=bool(changed))
    _log_resume(found, changed)
    _log_overruled(config.trainer, explicit_keys(job))
    resumed_from = None if found is None else found.name if found.parent == run.checkpoints else str(found)
    record.start(seed=config.seed, resumed_from=resumed_from, changed=changed, name=config.name)
    return str(found) if found else None


def refuse_unavailable_metrics(config: RunConfig, predicts: bool, sources: list[str] | None = None) -> None:
    """Refuse settings that this machine does not support, and metrics that no evaluation produces.

    Args:
        predicts: whether there is a `compute_metrics`, which produces metrics of its own.
        sources: the sources with evaluation rows, once the data is read; None before.

    Raises:
        UserError: naming all such problems.
    """
    found = missing(config) if sources is None else []
    if not predicts:
        found += [*unknown_figures(config, sources), *unread_without_predictions(config)]
    raise_all(found)


def _is_extended(run: RunDirectory, config: RunConfig, changed: Mapping[str, Any]) -> bool:
    """Whether a finished run is to train further: its last step has changed, and is past the steps it has made."""
    metrics, trainer = Metrics.read(run), config.trainer
    if metrics is None or not {"trainer.max_steps", "trainer.num_train_epochs"} & set(changed):
        return False
    limit = int(trainer.get("max_steps") or -1)
    if limit > 0:
        return limit > (metrics.steps or 0)
    return float(trainer.get("num_train_epochs") or 3) > (metrics.epochs or 0.0) + 1e-6


def _refuse_without_effect(run: RunDirectory, changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse changes of a finished run that does not train further: they would have no effect.

    Raises:
        UserError: naming the changes.
    """
    metrics = Metrics.read(run)
    raise_all(
        [
            UserError(
                f"the run is finished after {metrics.steps if metrics else '?'} steps: no step is left that this could change",
                where=key,
                remedy=f"{key}={old} to get its result, a larger trainer.max_steps to train it further "
                f"('allow_changes=[trainer.max_steps,{key}]'), or another hydra.run.dir for a new run",
            )
            for key, (old, _) in changed.items()
        ]
    )


def _refuse_without_checkpoint(run: RunDirectory) -> None:
    weights = run.adapter if run.adapter.is_dir() else run.model
    key = "model.adapter" if weights == run.adapter else "model.name"
    raise UserError(
        "the run is finished and has no complete checkpoint to continue from",
        where=str(run.checkpoints),
        remedy=f"a new run from its weights: hydra.run.dir=ANOTHER {key}={weights}",
    )


def _log_resume(found: Path | None, changed: Mapping[str, tuple[Any, Any]]) -> None:
    if found is None:
        return
    log.info("resuming from %s", found)
    for key, (old, new) in changed.items():
        log.warning("%s: %s until now, %s from here on (allowed): %s", key, old, new, effect_of(key))
    if (merged := found.parent.parent / "merged").is_dir():
        log.warning("%s is outdated: python -m sft.merge run=%s overwrite=true", merged, merged.parent)


def _log_overruled(trainer: Mapping[str, Any], explicit: list[str]) -> None:
    """Log which settings of the command line are overridden by another one."""
    for first, second in _OVERRULED:
        if second in explicit and (trainer.get(first) or 0) > 0:
            log.warning("trainer.%s is ignored: trainer.%s=%s takes precedence", second, first, trainer[first])


def explicit_keys(job: Job) -> list[str]:
    """The trainer keys set on the command line."""
    overrides = (job.hydra.get("overrides") or {}).get("task") or []
    keys = [str(o).lstrip("+").partition("=")[0] for o in overrides]
    return [key.removeprefix("trainer.") for key in keys if key.startswith("trainer.")]


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch; other libraries draw from these."""
    from transformers import set_seed

    set_seed(seed)


def _start_over(job: Job) -> None:
    """With resume=never remove what an earlier run left in the directory, except the user's own files."""
    run = job.run
    for path in (run.checkpoints, run.adapter, run.model, run.merged, run.path / ".hydra"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (run.config, run.metrics_jsonl, run.metrics_json, run.run_json, run.training_info, run.tracker_json):
        path.unlink(missing_ok=True)


def _refuse_other_ranks(config: RunConfig, record: Mapping[str, Any]) -> None:
    """Require as many processes as the run was started with: each has its rows and its random numbers.

    Raises:
        UserError: the number differs, and `allow_changes` does not name world_size.
    """
    then, now = int(record.get("world_size") or 1), world_size()
    if then == now or record.get("status") == "finished" or "world_size" in config.allow_changes:
        return
    processes = f"torchrun --nproc-per-node={then} -m sft.train ..." if then > 1 else "python -m sft.train ..."
    rows, tokens = batch_of_a_step(config.trainer, then)
    size, left = divmod(rows, now * int(config.trainer.get("gradient_accumulation_steps") or 1))
    same = f" trainer.per_device_train_batch_size={size}" if not left and not tokens else ""
    keys = "world_size,trainer.per_device_train_batch_size"
    raise UserError(
        f"this run was started with {_processes(then)}, not {now}",
        where="world_size",
        remedy=processes + (f", or{same} 'allow_changes=[{keys}]', with different random numbers" if same else ""),
    )


def _processes(count: int) -> str:
    return f"{count} processes" if count > 1 else "one process"
