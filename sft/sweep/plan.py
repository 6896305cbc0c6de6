"""The plan of a sweep: its jobs with their directories, and the check against an earlier sweep in its directory."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sft.config.command_line.overrides import swept_values
from sft.config.compose import compose_job, config_loader, plain
from sft.config.errors import UserError, UserErrors
from sft.config.resolvers import RESOLVER, as_typed, job_name
from sft.config.weight_neutral import is_weight_neutral
from sft.run.directory import RunDirectory
from sft.run.record import has_made_steps
from sft.safety.secrets import redact_command, typed_command
from sft.sweep.directories import job_overrides, refuse_shared_directories, subdir_of
from sft.sweep.record import SweepRecord
from sft.training.resume.config_changes import refuse_changes


@dataclass
class Plan:
    """A sweep before its first job.

    Attributes:
        facts: command, overrides, swept keys, objective, direction.
        jobs: number, directory and swept values of each job; empty for a search, which creates them one by one.
        overrides: all overrides of each job.
        config: plain, as it is without what the jobs differ in.
    """

    facts: dict[str, Any]
    jobs: list[dict[str, Any]]
    overrides: list[list[str]]
    config: dict[str, Any]


def plan(config: DictConfig) -> Plan:
    """The plan of a multirun's config (Hydra's node included).

    Raises:
        UserError: two jobs would write the same directory.
    """
    task = [str(override) for override in config.hydra.overrides.task]
    swept = list(swept_values(task))
    facts = {
        "command": shlex.join(typed_command()),
        "overrides": redact_command(task),
        "swept": swept,
        "objective": config.get("objective"),
        "direction": config.get("direction"),
    }
    found = job_overrides(config)
    refuse_shared_directories(config, found)
    overrides = found or []
    named = RESOLVER in subdir_of(config)
    jobs = [
        {
            "number": number,
            "directory": job_name(number, each) if named else None,
            "overrides": swept_of(each, swept),
        }
        for number, each in enumerate(overrides)
    ]
    return Plan(facts, jobs, overrides, OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]


def swept_of(overrides: Sequence[str], swept: Sequence[str]) -> dict[str, str]:
    """{key: value as typed} of the swept keys in a job's overrides."""
    pairs = (str(override).lstrip("+~").partition("=") for override in overrides)
    return {key: as_typed(key, value) for key, _, value in pairs if key in swept}


def refuse_other_sweep(record: SweepRecord, planned: Plan, config_name: str) -> None:
    """Refuse to write a sweep into the directory of another.

    Raises:
        UserError: the directory's sweep was started with other overrides, or a job that was begun there would change (a
            YAML file was edited); lists the differences.
    """
    stored = record.read().get("overrides")
    before, now = (_binding(each, planned.config) for each in (stored or [], planned.facts["overrides"]))
    if stored is not None and sorted(before) != sorted(now):
        raise other_overrides(record.directory, before, now)
    errors = []
    loader = None
    for job, overrides in zip(planned.jobs, planned.overrides, strict=True):
        run = RunDirectory(record.directory / str(job["directory"]))
        if job["directory"] is None or not has_made_steps(run):
            continue
        loader = loader or config_loader()
        composed = compose_job(loader, config_name, overrides, "train", multirun=True)
        config = plain(composed.config)
        try:
            refuse_changes(run, config, config.get("allow_changes") or [])
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)


def _binding(overrides: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """The overrides that affect a job's weights; `sweep.retry_failed` and the like may change between sessions."""
    return [each for each in overrides if not is_weight_neutral(each.lstrip("+~").partition("=")[0], config)]


def other_overrides(directory: Path, before: Sequence[str], now: Sequence[str]) -> UserError:
    gone, new = [o for o in before if o not in now], [o for o in now if o not in before]
    return UserError(
        f"holds another sweep; what differs: {_quoted(gone) or 'nothing'} then, {_quoted(new) or 'nothing'} now",
        where=str(directory),
        remedy="resume it with the same overrides, or choose another hydra.sweep.dir",
    )


def _quoted(overrides: Sequence[str]) -> str:
    return " ".join(shlex.quote(str(override)) for override in overrides)
