"""The start of a run: whether it goes on from a checkpoint, its snapshot, its record, its seeds."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.config.effects import unread_without_predictions
from sft.config.errors import RunFailed, UserError, raise_all
from sft.config.figures import unknown_figures
from sft.config.rank import world_size
from sft.config.requirements import missing
from sft.run import checkpoint
from sft.run.directory import RunDirectory
from sft.run.record import RunRecord, begun, read_record
from sft.run.resume import refuse_changes
from sft.run.snapshot import write_snapshot
from sft.training.identity import refuse_other_files, refuse_other_versions
from sft.training.job import Job

log = logging.getLogger(__name__)


def begin(job: Job, record: RunRecord) -> str | None:
    """Check that the directory may be written by this config, and begin.

    Returns:
        The checkpoint to go on from; None to start at the first step. A finished run is left as it is.

    Raises:
        UserError: the directory belongs to another config, other library versions or (a finished run's) other files,
            or `resume` names no run.
        RunFailed: it failed before, in a sweep that leaves such jobs.
    """
    run, resume = job.run, str(job.config["resume"])
    if record.content.get("status") == "failed" and not job.retries:
        raise RunFailed(f"{record.content.get('error')}\n  left as it failed before (sweep.retry_failed=false)")
    if resume == "never" or not begun(run):
        _start_over(job)
        record.content.clear()
    else:
        refuse_changes(run, job.config, job.config.get("allow_changes") or [])
        refuse_other_versions(job.config, record.content)
        _refuse_other_ranks(job.config, record.content)
        if record.content.get("status") == "finished":
            refuse_other_files(job.config, record.content)
            return None
    write_snapshot(run, job.config, job.unresolved, job.hydra)
    root = run.checkpoints if resume in ("auto", "never") else _checkpoints_of(resume)
    if resume not in ("auto", "never"):
        record.content.setdefault("template_date", read_record(RunDirectory(root.parent)).get("template_date"))
    checkpoint.recover(root)
    found = checkpoint.latest_good(root)
    if found is not None:
        log.info("going on from %s", found)
    record.start(seed=job.config["seed"], resumed_from=found.name if found else None, name=job.config["name"])
    return str(found) if found else None


def refuse_unmeasured(config: Mapping[str, Any], predicts: bool, sources: list[str] | None = None) -> None:
    """Refuse what this machine cannot do, and figures that no evaluation gives.

    Args:
        predicts: whether there is a `compute_metrics`, which gives figures of its own.
        sources: those with evaluation rows, once the data is read; None before.

    Raises:
        UserError: all such faults.
    """
    found = missing(config) if sources is None else []
    if not predicts:
        found += [*unknown_figures(config, sources), *unread_without_predictions(config)]
    raise_all(found)


def explicit_keys(job: Job) -> list[str]:
    """The trainer keys that the command line gave itself."""
    overrides = (job.hydra.get("overrides") or {}).get("task") or []
    keys = [str(o).lstrip("+").partition("=")[0] for o in overrides]
    return [key.removeprefix("trainer.") for key in keys if key.startswith("trainer.")]


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch; the hub's libraries draw from these."""
    from transformers import set_seed

    set_seed(seed)


def _start_over(job: Job) -> None:
    """With resume=never what an earlier run left in the directory is removed, but for the user's own files."""
    run = job.run
    for path in (run.checkpoints, run.adapter, run.model, run.merged, run.path / ".hydra"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (run.config, run.metrics_jsonl, run.metrics_json, run.run_json, run.training_info, run.tracker_json):
        path.unlink(missing_ok=True)


def _refuse_other_ranks(config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """A run goes on with as many processes as it was begun with: each has its rows and its random numbers.

    Raises:
        UserError: it would not, and `allow_changes` does not name world_size.
    """
    then, now = int(record.get("world_size") or 1), world_size()
    if then == now or record.get("status") == "finished" or "world_size" in (config.get("allow_changes") or []):
        return
    processes = f"torchrun --nproc-per-node={then} -m sft.train ..." if then > 1 else "python -m sft.train ..."
    batch = config["trainer"].get("per_device_train_batch_size", 8)
    size, left = divmod(batch * then, now)
    same = f" trainer.per_device_train_batch_size={size}" if not left else ""
    keys = "world_size,trainer.per_device_train_batch_size" if same else "world_size"
    raise UserError(
        f"this run was begun by {_processes(then)}, not {now}",
        where="world_size",
        remedy=f"{processes}, or{same} 'allow_changes=[{keys}]', with other random numbers"
        + ("" if same else " and another batch"),
    )


def _processes(count: int) -> str:
    return f"{count} processes together" if count > 1 else "one process"


def _checkpoints_of(resume: str) -> Path:
    """The checkpoints of another run directory."""
    root = Path(resume).expanduser()
    if not root.is_dir():
        raise UserError("no such directory", where=f"resume={resume}", remedy="resume=auto, never, or a run directory")
    return root if checkpoint.listed(root) else root / "checkpoints"
