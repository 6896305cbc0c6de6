"""A grid of runs from Python, like `python -m sft.train -m` but without a command line."""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from sft.config.errors import Interrupted, Pruned
from sft.config.paths import expanded
from sft.config.resolvers import job_name, set_swept
from sft.config.script import compose_script
from sft.run.lock import RunLock
from sft.sweep.leaderboard import write_leaderboard
from sft.sweep.ranking import Leaderboard
from sft.sweep.record import SweepRecord

log = logging.getLogger(__name__)


def run_grid(
    config: DictConfig,
    grid: Mapping[str, Sequence[Any]],
    fused: bool = False,
    directory: str | Path | None = None,
    n_jobs: int | None = None,
) -> Leaderboard:
    """Run every combination and rank them, see `sft.api.sweep`."""
    stamp = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    place = expanded(str(directory or f"outputs/{config.name}/sweep_{stamp}")).absolute()
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    set_swept({key: {_text(value): _text(value) for value in values} for key, values in grid.items()})
    names = [job_name(at, [f"{key}={_text(value)}" for key, value in point.items()]) for at, point in enumerate(points)]
    configs = _composed(config, points, [place / name for name in names])
    record = SweepRecord(place)
    with RunLock(place):
        facts = {
            "command": None,
            "overrides": [f"{key}={','.join(map(_text, values))}" for key, values in grid.items()],
            "swept": list(grid),
            "objective": config.get("objective"),
            "direction": config.get("direction"),
        }
        jobs = [
            {"number": at, "directory": name, "overrides": {key: _text(value) for key, value in point.items()}}
            for at, (name, point) in enumerate(zip(names, points, strict=True))
        ]
        record.begin(facts, jobs)
        status = "interrupted"
        try:
            _run_all(configs, record, fused, n_jobs)
            status = "finished"
        finally:
            record.end(status)
        return write_leaderboard(place)


def _composed(config: DictConfig, points: Sequence[Mapping[str, Any]], directories: Sequence[Path]) -> list[DictConfig]:
    """The checked config of each job; all are checked before the first runs."""
    task = {key: value for key, value in config.items() if key != "hydra"}
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "config.resolved.yaml"
        base.write_text(OmegaConf.to_yaml(OmegaConf.create(task), resolve=True), encoding="utf-8")
        for point, directory in zip(points, directories, strict=True):
            overrides = [f"{key}={_text(value)}" for key, value in point.items()]
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
    def run() -> None:
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

    return run


def _text(value: Any) -> str:
    """A value in override syntax."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")
