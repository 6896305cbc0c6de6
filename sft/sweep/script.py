"""A grid of runs from Python, like `python -m sft.train -m` but without a command line."""

from __future__ import annotations

import itertools
import logging
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from sft.config.command_line.overrides import quoted
from sft.config.errors import Interrupted, Pruned, UserError, raise_all
from sft.config.paths import expanded
from sft.config.resolvers import job_name, set_swept
from sft.config.script import compose_script
from sft.run.lock import RunLock
from sft.sweep.leaderboard import write_leaderboard
from sft.sweep.plan import other_overrides
from sft.sweep.ranking import Leaderboard
from sft.sweep.record import SweepRecord

log = logging.getLogger(__name__)

_PLAIN = re.compile(r"[\w.+\-/:]+")  # needs no quotes in an override


def run_grid(
    config: DictConfig,
    grid: Mapping[str, Sequence[Any]],
    fused: bool = False,
    directory: str | Path | None = None,
    n_jobs: int | None = None,
) -> Leaderboard:
    """Run every combination and rank them, see `sft.api.sweep`."""
    _refuse_no_lists(grid, n_jobs)
    stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    place = expanded(str(directory or f"outputs/{config.name}/sweep_{stamp}")).absolute()
    texts = {key: [_text(value) for value in values] for key, values in grid.items()}
    points = [dict(zip(texts, values, strict=True)) for values in itertools.product(*texts.values())]
    names = _names(texts, points)
    configs = _composed(config, points, [place / name for name in names])
    record = SweepRecord(place)
    with RunLock(place):
        overrides = [f"{key}={','.join(values)}" for key, values in texts.items()]
        stored = record.read().get("overrides")
        if stored is not None and sorted(stored) != sorted(overrides):
            raise other_overrides(place, stored, overrides)
        facts = {
            "command": None,
            "overrides": overrides,
            "swept": list(texts),
            "objective": config.get("objective"),
            "direction": config.get("direction"),
        }
        pairs = enumerate(zip(names, points, strict=True))
        record.begin(facts, [{"number": at, "directory": name, "overrides": point} for at, (name, point) in pairs])
        try:
            _run_all(configs, record, fused, n_jobs)
        except BaseException:
            record.end("interrupted")
            raise
        content = record.end("finished")
        if any(job["status"] == "failed" for job in content["jobs"]):
            record.end("failed")
        return write_leaderboard(place)


def _refuse_no_lists(grid: Mapping[str, Sequence[Any]], n_jobs: int | None) -> None:
    """Refuse values that are not a list: the letters of a string would be jobs of their own.

    Raises:
        UserError: naming each such key, or a number of jobs below 1.
    """
    errors = []
    for key, values in grid.items():
        if isinstance(values, str | bytes) or not isinstance(values, Sequence) or not values:
            what = (
                "an empty list" if isinstance(values, Sequence) and not values else f"{values!r}, not a list of values"
            )
            errors.append(UserError(f"the grid has {what}", where=key, remedy=f'{{"{key}": [VALUE, VALUE]}}'))
    if n_jobs is not None and n_jobs < 1:
        errors.append(UserError(f"{n_jobs} jobs at a time", where="n_jobs", remedy="1 or more, or None"))
    raise_all(errors)


def _names(texts: Mapping[str, Sequence[str]], points: Sequence[Mapping[str, str]]) -> list[str]:
    """The jobs' directories, as a sweep of the command line names them."""
    set_swept({key: {value: value for value in values} for key, values in texts.items()})
    try:
        return [job_name(at, [f"{key}={value}" for key, value in point.items()]) for at, point in enumerate(points)]
    finally:
        set_swept({})


def _composed(config: DictConfig, points: Sequence[Mapping[str, str]], directories: Sequence[Path]) -> list[DictConfig]:
    """The checked config of each job; all are checked before the first runs."""
    task = {key: value for key, value in config.items() if key != "hydra"}
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "config.resolved.yaml"
        base.write_text(OmegaConf.to_yaml(OmegaConf.create(task), resolve=True), encoding="utf-8")
        for point, directory in zip(points, directories, strict=True):
            overrides = [f"{key}={value}" for key, value in point.items()]
            composed = compose_script([*overrides, f"hydra.run.dir={directory}"], base)
            with open_dict(composed):
                composed.hydra.mode = "MULTIRUN"
            found.append(composed)
    return found


def _run_all(configs: Sequence[DictConfig], record: SweepRecord, fused: bool, n_jobs: int | None) -> None:
    """Run the jobs; a failing one is recorded and does not stop the others."""
    from sft.sweep.launchers.fused import by_base, train_together

    together, alone = by_base(dict(enumerate(configs))) if fused else ([], dict.fromkeys(range(len(configs)), ""))
    for numbers in together:
        train_together({number: _work(configs[number], record, number) for number in numbers}, n_jobs)
    for number, reason in alone.items():
        if reason:
            log.info("job %d trains by itself: %s", number, reason)
        _work(configs[number], record, number)()


def _work(config: DictConfig, record: SweepRecord, number: int) -> Callable[[], None]:
    """What runs one job and records how it ended; only an interruption leaves it."""

    def train_and_record() -> None:
        from sft.train import train

        try:
            train(config)
            record.job(number, status="finished", error=None)
        except (Interrupted, KeyboardInterrupt):
            raise
        except Pruned:
            record.job(number, status="pruned", error=None)
        except Exception as error:
            log.error("job %d failed: %s", number, error)
            record.job(number, status="failed", error=str(error))

    return train_and_record


def _text(value: Any) -> str:
    """A value in override syntax."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(_text, value)) + "]"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else quoted(text)
