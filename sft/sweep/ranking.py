"""Ranking a sweep: jobs by their objective, and points (jobs that differ only in the seed) by their mean."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.config.checks.suggest import nearest
from sft.config.errors import UserError
from sft.sweep.differences import Difference, differences
from sft.sweep.results import JobResult, SweepResults

_SEED = re.compile(r"(.*[._])?seed")


@dataclass
class Point:
    """One combination of swept values, and its jobs.

    Attributes:
        values: the swept values, without the seed.
        jobs: its jobs, by number.
        scores: the objective of each job that is finished and has one, best first.
        best: the job with the best score, None where there is none.
        rank: among the points with a score, from 1; None for the others.
    """

    values: dict[str, Any]
    jobs: list[JobResult]
    scores: list[float] = field(default_factory=list)
    best: JobResult | None = None
    rank: int | None = None

    @property
    def mean(self) -> float | None:
        """The mean objective, None without a score."""
        return float(statistics.mean(self.scores)) if self.scores else None  # exact arithmetic, which cannot overflow

    @property
    def spread(self) -> float | None:
        """The sample standard deviation of the objective, None for fewer than two scores or where it overflows."""
        try:
            return statistics.stdev(self.scores) if len(self.scores) > 1 else None
        except OverflowError:
            return None


@dataclass
class Leaderboard:
    """A ranked sweep.

    Attributes:
        sweep: the jobs as read.
        objective: the metric they are ranked by.
        direction: minimize or maximize.
        ranked: finished jobs that have the metric, best first.
        unranked: all others, by number.
        points: best first; those without a score at the end.
        differences: of jobs to the winner, by number, where both were measured on the same rows.
    """

    sweep: SweepResults
    objective: str
    direction: str
    ranked: list[JobResult]
    unranked: list[JobResult]
    points: list[Point]
    differences: dict[int, Difference] = field(default_factory=dict)

    @property
    def repeated(self) -> bool:
        """Whether some point was run more than once."""
        return any(len(point.jobs) > 1 for point in self.points)

    @property
    def winner(self) -> JobResult | None:
        """The best job of the best point; None where no job has the metric."""
        return self.points[0].best if self.points else None

    @property
    def directory(self) -> Path:
        """The sweep's directory."""
        return self.sweep.directory

    def score(self, job: JobResult) -> float | None:
        """The job's objective, None where it has none."""
        return finite(job.figures.get(self.objective))


def rank(sweep: SweepResults, objective: str | None = None, direction: str | None = None) -> Leaderboard:
    """Rank a sweep's jobs and points.

    Args:
        sweep: as from `read_sweep`.
        objective: a metric in metrics.json; None for the sweep's own, else eval_loss, else train_loss.
        direction: minimize or maximize; None for the sweep's own with its own objective, else by the name.

    Raises:
        UserError: no finished job has the given objective.
    """
    finished = [job for job in sweep.jobs if job.status == "finished"]
    if objective is not None and finished:
        _refuse_unknown(objective, finished)
    name = objective or sweep.objective or _usual(finished)
    own = sweep.direction if name == sweep.objective or sweep.objective is None else None
    way = direction or own or usual_direction(name)
    sign = -1 if way == "maximize" else 1

    def order(job: JobResult) -> tuple[float, int]:
        return sign * (finite(job.figures.get(name)) or 0.0), job.number

    ranked = sorted((job for job in finished if finite(job.figures.get(name)) is not None), key=order)
    placed = {id(job) for job in ranked}
    unranked = [job for job in sweep.jobs if id(job) not in placed]
    points = _points(sweep, ranked, name)
    points.sort(key=lambda point: (point.mean is None, sign * (point.mean or 0.0), point.jobs[0].number))
    for place, point in enumerate(points, 1):
        point.rank = place if point.scores else None
    board = Leaderboard(sweep, name, way, ranked, unranked, points)
    board.differences = differences(board.winner, ranked, name, way)
    return board


def usual_direction(figure: str) -> str:
    """The direction of a metric by its name: losses and perplexities are minimized, all others maximized."""
    return "minimize" if figure.endswith(("loss", "perplexity")) else "maximize"


def point_keys(keys: Iterable[str]) -> list[str]:
    """The swept keys that define a point: all but seeds."""
    return [key for key in keys if not is_seed(key)]


def is_seed(key: str) -> bool:
    """Whether a key is a seed."""
    return bool(_SEED.fullmatch(key))


def finite(value: Any) -> float | None:
    """A finite number as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def as_number(value: Any) -> float | None:
    """A swept value as a number ("1e-3"), None where it is not one."""
    if isinstance(value, str):
        try:
            return finite(float(value)) if "_" not in value else None
        except ValueError:
            return None
    return finite(value)


def _points(sweep: SweepResults, ranked: list[JobResult], objective: str) -> list[Point]:
    keys = point_keys(sweep.keys)
    found: dict[tuple[Any, ...], Point] = {}
    for job in sweep.jobs:
        place = tuple(_comparable(job.values.get(key)) for key in keys)
        point = found.setdefault(place, Point({key: job.values.get(key) for key in keys}, []))
        point.jobs.append(job)
    owner = {id(job): point for point in found.values() for job in point.jobs}
    for job in ranked:
        point = owner[id(job)]
        point.best = point.best or job
        point.scores.append(float(job.figures[objective]))
    return list(found.values())


def _comparable(value: Any) -> Any:
    """A value that is equal for two spellings of one number ("1e-3" and 0.001)."""
    number = as_number(value)
    return number if number is not None else str(value)


def _usual(finished: list[JobResult]) -> str:
    scored = any(finite(job.figures.get("eval_loss")) is not None for job in finished)
    trained = any(finite(job.figures.get("train_loss")) is not None for job in finished)
    return "train_loss" if trained and not scored else "eval_loss"


def _refuse_unknown(objective: str, finished: list[JobResult]) -> None:
    figures = sorted({key for job in finished for key, value in job.figures.items() if finite(value) is not None})
    if objective not in figures:
        near = nearest(objective, figures)
        remedy = f"did you mean objective={near}? " * bool(near) + f"There are: {', '.join(figures) or 'none'}"
        raise UserError(f"no finished job has the metric {objective!r}", where="objective", remedy=remedy)
