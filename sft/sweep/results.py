"""The results of a sweep's jobs: values, status and metrics, read from the run directories."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from sft.config.errors import UserError
from sft.config.paths import expanded
from sft.config.weight_neutral import is_weight_neutral
from sft.drawing.canvas import Curve
from sft.drawing.curves import curves
from sft.run.directory import RunDirectory
from sft.run.disk.atomic import TEMPORARY
from sft.run.lock import holder
from sft.run.metrics import last_values
from sft.run.record import read_record
from sft.sweep.record import NAME
from sft.training.resume.config_changes import flat, read_snapshot

_NUMBERED = re.compile(r"(\d+)(?:_|$)")


@dataclass
class JobResult:
    """One job of a sweep.

    Attributes:
        number: its number in the sweep.
        name: its directory's name; its number as text if it never had a directory.
        path: its run directory, None if it never had one.
        values: the value of each swept key, as on the command line.
        status: running, finished, interrupted, failed or pruned; pending if it has not begun; unreadable if its
            files are broken.
        error: why it failed, None where it did not.
        figures: the metrics in metrics.json; for a job that is not finished also the last logged ones.
        config: its resolved config, {} where there is none.
        curves: its curves by name, as from `sft.drawing.curves.curves`.
    """

    number: int
    name: str
    path: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)
    status: str = "pending"
    error: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)


@dataclass
class SweepResults:
    """A sweep's jobs in order, and the facts in sweep.json.

    Attributes:
        directory: the sweep's.
        keys: the swept keys.
        jobs: every job, including those without a directory.
        objective, direction: from sweep.json or the jobs' configs, None where not set.
        command: the command line, None where it is not known.
    """

    directory: Path
    keys: list[str]
    jobs: list[JobResult]
    objective: str | None = None
    direction: str | None = None
    command: str | None = None


def read_sweep(directory: Path) -> SweepResults:
    """Read a sweep's directory: by its sweep.json, else every run directory in it.

    Raises:
        UserError: the directory does not exist, or has no run in it.
    """
    directory = expanded(directory).absolute()
    if not directory.is_dir():
        raise UserError("no such directory", where=f"dir={directory}", remedy="give the directory of a sweep")
    record = RunDirectory(directory).read_json(NAME)
    found = _recorded(directory, record) if isinstance(record, dict) else _scanned(directory)
    if not found.jobs:
        if is_run(directory):
            raise UserError(
                "is the directory of one run, not of a sweep",
                where=f"dir={directory}",
                remedy=f"dir={directory.parent} ranks all runs there",
            )
        raise UserError(
            "has no sweep.json and no run in it",
            where=f"dir={directory}",
            remedy="give the directory with the jobs' directories, as `sft.train -m` printed it",
        )
    return found


def is_run(directory: Path) -> bool:
    """Whether the directory is that of a run."""
    run = RunDirectory(directory)
    return any(path.is_file() for path in (run.config, run.run_json, run.metrics_json))


def _recorded(directory: Path, record: Mapping[str, Any]) -> SweepResults:
    """A sweep by its sweep.json."""
    jobs = []
    _check_record(directory, record)
    for index, entry in enumerate(record.get("jobs") or []):
        name = entry.get("directory")
        number = entry.get("number", index)
        job = JobResult(number, name or str(number), status=entry.get("status") or "pending", error=entry.get("error"))
        if name:
            _read_job(job, directory / name)
        said = {key.lstrip("+"): value for key, value in (entry.get("overrides") or {}).items()}
        job.values = {**said}
        jobs.append(job)
    keys = [key.lstrip("+") for key in record.get("swept") or []]
    for job in jobs:
        config = flat(job.config)
        job.values = {key: job.values.get(key, config.get(key)) for key in keys}
    objective, direction = record.get("objective"), record.get("direction")
    if objective is None:
        objective, direction = _asked_for(jobs)
    jobs.sort(key=lambda job: job.number)
    return SweepResults(directory, keys, jobs, objective, direction, record.get("command"))


def _check_record(directory: Path, record: Mapping[str, Any]) -> None:
    """Refuse a sweep.json that was not written by a sweep, because it decides which directories are read."""
    entries = record.get("jobs") or []
    kinds = {
        "directory": str | None,
        "number": int,
        "status": str | None,
        "error": str | None,
        "overrides": dict | None,
    }
    holds = isinstance(entries, list) and all(
        isinstance(entry, dict)
        and all(isinstance(entry[key], kind) for key, kind in kinds.items() if key in entry)
        and PurePath(entry.get("directory") or "x").parts[:1] not in ((), ("..",), ("/",))
        and ".." not in PurePath(entry.get("directory") or "x").parts
        for entry in entries
    )
    swept = record.get("swept") or []
    names = isinstance(swept, list) and all(isinstance(key, str) for key in swept)
    goal = all(isinstance(record.get(key), str | None) for key in ("objective", "direction", "command"))
    if not (holds and names and goal):
        raise UserError(
            "is not a record that a sweep wrote",
            where=str(directory / NAME),
            remedy="move it away: the runs in the directory can be ranked without it",
        )


def _scanned(directory: Path) -> SweepResults:
    """Every run directory there; keys in which their configs differ count as swept."""
    paths = [path for path in directory.iterdir() if not path.name.startswith(TEMPORARY) and path.is_dir()]
    paths = sorted(filter(is_run, paths), key=lambda path: (_number(path.name), path.name))
    jobs = [JobResult(index, path.name) for index, path in enumerate(paths)]
    numbers = [_number(path.name) for path in paths]
    distinct = len(set(numbers)) == len(numbers) and all(number < 1 << 30 for number in numbers)
    for job, path, number in zip(jobs, paths, numbers, strict=True):
        job.number = int(number) if distinct else job.number
        _read_job(job, path)
    keys = swept_keys([job.config for job in jobs if job.config])
    for job in jobs:
        config = flat(job.config)
        job.values = {key: config.get(key) for key in keys}
    return SweepResults(directory, keys, jobs, *_asked_for(jobs))


def swept_keys(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """The dotted keys in which resolved configs differ, without those that cannot affect training."""
    configs = list(configs)
    flats = [flat(config) for config in configs]
    keys = dict.fromkeys(key for config in flats for key in config)
    varied = [key for key in keys if any(config.get(key) != flats[0].get(key) for config in flats)]
    return [key for key in varied if not is_weight_neutral(key, *configs) and not key.endswith("_target_")]


def _read_job(job: JobResult, path: Path) -> None:
    """Fill in the facts from the job's own directory, which win over sweep.json."""
    if not path.is_dir():
        return
    job.path, run = path, RunDirectory(path)
    try:
        record, figures = read_record(run), run.read_json(run.metrics_json, {}) or {}
        history = run.read_jsonl(run.metrics_jsonl)
        job.config = read_snapshot(run) or {}
    except UserError as error:
        job.status, job.error = "unreadable", str(error)
        return
    said = (record.get("status"), record.get("error"), figures.get("status"))
    if not all(isinstance(each, str | None) for each in said):
        job.status, job.error = "unreadable", f"{run.run_json}: a status or an error that is not text"
        return
    job.status = record.get("status") or figures.get("status") or job.status
    if job.status == "running" and holder(path) is None:
        job.status = "interrupted"  # killed before it could record it
    job.error = (record.get("error") or job.error) if job.status != "finished" else None
    job.curves = curves(history)
    if job.status != "finished":
        last = last_values(history)
        logged = {key: value for key, value in last.items() if key.startswith("eval_")}
        logged |= {"steps": last["step"]} if "step" in last else {}
        figures = {**figures, **{key: value for key, value in logged.items() if not figures.get(key)}}
    # only plain metrics: nested ones such as start_seconds are not columns
    job.figures = {key: value for key, value in figures.items() if key != "status" and not isinstance(value, dict)}


def _asked_for(jobs: Iterable[JobResult]) -> tuple[str | None, str | None]:
    """Objective and direction from the jobs' configs; None where they are missing or differ."""
    named = {(job.config.get("objective"), job.config.get("direction")) for job in jobs if job.config}
    return named.pop() if len(named) == 1 else (None, None)


def _number(name: str) -> float:
    match = _NUMBERED.match(name)
    return int(match[1]) if match else float("inf")
