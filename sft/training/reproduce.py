"""Replay a run from its directory: check that its inputs are the same, and compare the results."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from sft.config.errors import UserError, raise_all
from sft.config.rank import world_size
from sft.config.run_config import RunConfig
from sft.run.directory import RunDirectory
from sft.run.disk.digest import sha256_of
from sft.run.environment import git_state
from sft.run.record import read_record
from sft.training.job import Job
from sft.training.resume.config_changes import changes, read_snapshot
from sft.training.resume.identity import refuse_other_versions

log = logging.getLogger(__name__)

# Times, speeds and memory always differ.
_OF_THE_MOMENT = re.compile(r"time|.*(second|runtime|memory_bytes|utilization).*")


@dataclass(frozen=True)
class Row:
    """One line of the comparison."""

    name: str
    then: str
    now: str
    equal: bool


def replay_of(config: DictConfig) -> tuple[RunDirectory, Job]:
    """The job that replays a run, after all checks that need no data.

    Args:
        config: the run's own config with `run`, and the command line's changes.

    Returns:
        The run's directory, and the job that writes into another one, without the run's tracker.

    Raises:
        UserError: the run is not finished; or its config, library versions or number of processes differ, and
            `allow_changes` does not name what differs.
    """
    with open_dict(config):
        origin = RunDirectory(str(config.pop("run")))
    record = read_record(origin)
    if record.get("status") != "finished":
        raise UserError(
            f"the run is {record.get('status') or 'not started'}: there is no result to compare with",
            where=f"run={origin.path}",
            remedy=f"finish it first with its own command and hydra.run.dir={origin.path}",
        )
    job = Job.of(config)
    if job.run.path == origin.path:
        raise UserError(
            "a replay must not overwrite its original", where="hydra.run.dir", remedy="choose another directory"
        )
    job = replace(job, config=job.config.with_(tracker=None), origin=record)
    _refuse_changes(origin, job.config)
    _refuse_changed_underway(record, job.config)
    refuse_other_versions(job.config, record)
    _refuse_other_ranks(record, job.config)
    _report_code(record)
    return origin, job


def compare(then: RunDirectory, now: RunDirectory) -> list[Row]:
    """Compare metrics.json, every logged step, and the weights' bytes; times and memory are ignored."""
    first, second = then.read_json(then.metrics_json, {}), now.read_json(now.metrics_json, {})
    rows = [
        Row(key, _short(first.get(key)), _short(second.get(key)), first.get(key) == second.get(key))
        for key in dict.fromkeys([*first, *second])
        if not _OF_THE_MOMENT.fullmatch(key)
    ]
    return [*rows, _steps(then, now), *_weights(then, now)]


def table(rows: list[Row]) -> str:
    """The rows as text, columns aligned."""
    lines = [("figure", "then", "now", "equal"), *((r.name, r.then, r.now, "yes" if r.equal else "NO") for r in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _refuse_changes(origin: RunDirectory, config: RunConfig) -> None:
    """Refuse a replay with a config that differs in what affects the weights."""
    errors = []
    for key, (old, new) in changes(read_snapshot(origin) or {}, config, config.allow_changes).items():
        remedy = f"leave {key} out; to see what it changes, 'allow_changes=[{key}]'"
        errors.append(UserError(f"the run to replay had {old}, not {new}", where=key, remedy=remedy))
    raise_all(errors)


def _refuse_changed_underway(record: Mapping[str, Any], config: RunConfig) -> None:
    """Refuse a run whose settings were changed when it was resumed: no single config replays it."""
    for session in record.get("sessions") or []:
        changed = session.get("changed") or {}
        if changed and not set(changed) <= set(config.allow_changes):
            name, (then, now) = next(iter(changed.items()))
            raise UserError(
                f"the run had {name}={then} until {session.get('resumed_from')}, and {name}={now} since",
                where=name,
                remedy=f"a replay has only one of them; to compare anyway, 'allow_changes=[{','.join(changed)}]'",
            )


def _refuse_other_ranks(record: Mapping[str, Any], config: RunConfig) -> None:
    then, now = record.get("world_size", 1), world_size()
    if then != now and "world_size" not in config.allow_changes:
        raise UserError(
            f"the run was trained by {then} processes, this is {now}",
            where="world_size",
            remedy=f"torchrun --nproc-per-node={then} -m sft.reproduce ..., or 'allow_changes=[world_size]'",
        )


def _report_code(record: Mapping[str, Any]) -> None:
    """Log whether code or machine differ; the comparison tells whether that mattered."""
    then, now = record.get("git") or {}, git_state() or {}
    if then.get("commit") != now.get("commit"):
        log.warning("the code was at commit %s then and is at %s now", then.get("commit"), now.get("commit"))
    elif then.get("dirty") or now.get("dirty"):
        log.warning("the code is at the same commit, with changes that are not committed")
    machines = [
        {key: (facts or {}).get(key) for key in ("cpu", "gpus")} for facts in (record.get("hardware"), _hardware())
    ]
    if machines[0] != machines[1]:
        log.warning("the machine is different: %s then, %s now", *machines)


def _hardware() -> dict[str, Any]:
    from sft.run.environment import hardware

    return hardware()


def _steps(then: RunDirectory, now: RunDirectory) -> Row:
    first, second = _logged(then), _logged(now)
    for one, other in zip(first, second, strict=False):
        if one != other:
            where = f"from step {one.get('step')}"
            return Row("logged steps", f"{len(first)} lines", f"{len(second)} lines, others {where}", False)
    return Row("logged steps", f"{len(first)} lines", f"{len(second)} lines", len(first) == len(second))


def _logged(run: RunDirectory) -> list[dict[str, Any]]:
    """metrics.jsonl without timing and memory values, and without a session's summary line."""
    lines = [line for line in run.read_jsonl(run.metrics_jsonl) if "train_runtime" not in line]
    return [{key: value for key, value in line.items() if not _OF_THE_MOMENT.fullmatch(key)} for line in lines]


def _weights(then: RunDirectory, now: RunDirectory) -> list[Row]:
    rows = []
    for name in ("adapter", "model"):
        files = [{path.name: path for path in (run.path / name).glob("*.safetensors")} for run in (then, now)]
        for file in sorted({*files[0], *files[1]}):
            first, second = (_digest(found.get(file)) for found in files)
            rows.append(Row(f"{name}/{file}", first[:16], second[:16], first == second))
    return rows


def _digest(path: Path | None) -> str:
    return "missing" if path is None else sha256_of(path)


def _short(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else "-" if value is None else str(value)
