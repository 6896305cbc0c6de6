"""Choose the checkpoint to resume: of the run's own directory, or of the one that `resume` names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.config.checks.conflicts import shards_weights
from sft.config.errors import UserError
from sft.config.paths import expanded
from sft.config.run_config import RunConfig
from sft.run import checkpoint
from sft.run.directory import RunDirectory
from sft.run.manifest import problem

INHERITED_FACTS = ("template_date", "data", "tokenizer", "template", "gradient_checkpointing")  # of run.json


@dataclass(frozen=True)
class Source:
    """The run that is resumed.

    Attributes:
        run: its directory.
        chosen: the checkpoint that `resume` names; None for the newest complete one.
    """

    run: RunDirectory
    chosen: Path | None = None


def source_of(resume: str) -> Source | None:
    """What `resume` names: a run directory, its checkpoints/, or one of its checkpoints. None for auto and never.

    Raises:
        UserError: it is not one of these, or not known what it was trained with.
    """
    if resume in ("auto", "never"):
        return None
    path, where = expanded(resume).absolute(), f"resume={resume}"
    if not path.is_dir():
        raise UserError(
            "no such directory", where=where, remedy="auto, never, a run directory, or one of its checkpoints"
        )
    chosen = path if checkpoint.step_of(path) is not None else None
    root = path.parent if chosen else path if checkpoint.listed(path) else path / "checkpoints"
    run = RunDirectory(root.parent)
    if not run.config.is_file():
        what = "is not in a run directory: its training config is unknown (no config.resolved.yaml)"
        raise UserError(what, where=where, remedy="resume=RUN or resume=RUN/checkpoints/checkpoint-<step>")
    if chosen and (reason := problem(chosen)):
        raise UserError(
            f"is incomplete: {reason}", where=where, remedy=f"resume={run.path} takes the newest complete one"
        )
    return Source(run, chosen)


def checkpoint_to_resume(run: RunDirectory, source: Source | None, begun: bool) -> Path | None:
    """The checkpoint to resume; None to begin at the first step.

    Args:
        run: the directory to write to.
        source: what `resume` names.
        begun: whether the directory's own run has already made steps; then its own checkpoints take precedence.

    Raises:
        UserError: the source has no complete checkpoint, or `resume` names an older one of this same run.
    """
    found = None
    if begun:
        checkpoint.recover(run.checkpoints)
        found = checkpoint.latest_good(run.checkpoints)
    if source is None:
        return found
    if source.run.path.resolve() == run.path.resolve():
        if source.chosen is not None and (found is None or found.name != source.chosen.name):
            newest = found.name if found else "none"
            what = f"{run.path.name} has newer checkpoints than {source.chosen.name} (the newest is {newest})"
            raise UserError(what, where="resume", remedy=f"hydra.run.dir=ANOTHER, with resume={source.chosen}")
        return found
    if found is not None:  # this run was resumed from the source earlier, and has progressed since
        return found
    found = source.chosen or checkpoint.latest_good(source.run.checkpoints)
    if found is None:
        what = f"{source.run.path} has no complete checkpoint"
        raise UserError(what, where="resume", remedy="resume=auto to begin at the first step")
    return found


def refuse_unusable(found: Path, config: RunConfig) -> None:
    """Refuse a checkpoint that cannot be resumed with this config.

    Raises:
        UserError: it has only weights, is past the end of training, or the kept schedule has reached 0.
    """
    if not (found / "scheduler.pt").is_file() and not shards_weights(config):
        raise UserError(
            f"{found.name} has only weights (trainer.save_only_model=true): no optimizer to resume",
            where=str(found),
            remedy="resume=never to train again from the first step, or a new run from the weights: "
            f"hydra.run.dir=ANOTHER model.adapter={found}",
        )
    state, trainer = _state(found), config.trainer
    limit, epochs = int(trainer.get("max_steps") or -1), float(trainer.get("num_train_epochs") or 3)
    step, epoch = int(state.get("global_step") or 0), float(state.get("epoch") or 0.0)
    behind = step > limit if limit > 0 else epoch > epochs + 1e-6
    if behind:
        key, end, at = ("max_steps", limit, step) if limit > 0 else ("num_train_epochs", epochs, round(epoch, 2))
        raise UserError(
            f"{found.name} is at {at}, past the end of training at {end}",
            where=f"trainer.{key}",
            remedy=f"a larger trainer.{key}, or an earlier checkpoint: hydra.run.dir=ANOTHER "
            f"resume={found.parent}/checkpoint-<step>",
        )
    _refuse_zero_rate(state, trainer, limit, epochs)


def _refuse_zero_rate(state: Mapping[str, Any], trainer: Mapping[str, Any], limit: int, epochs: float) -> None:
    """Refuse a kept schedule that has reached a rate of 0: it stays at its last rate, and nothing would be trained."""
    if trainer.get("resume_schedule", "stretched") != "kept":
        return
    progress = (state.get("stateful_callbacks") or {}).get("Progress") or {}
    steps = (progress.get("attributes") or {}).get("schedule_steps") or state.get("max_steps")
    made_for = float(state.get("num_train_epochs") or 0)
    longer = limit > (steps or 0) if limit > 0 else epochs > made_for
    if not steps or not longer:
        return
    from sft.training.trainer.schedule import last_rate

    if last_rate(trainer, int(steps)) > 0:
        return
    raise UserError(
        f"the kept schedule ends at step {steps} with a rate of 0: nothing more would be trained",
        where="trainer.resume_schedule",
        remedy="trainer.resume_schedule=stretched, or a schedule that does not end at 0: "
        "trainer.lr_scheduler_type=constant 'allow_changes=[trainer.lr_scheduler_type]'",
    )


def _state(found: Path) -> dict[str, Any]:
    try:
        state = json.loads((found / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}
