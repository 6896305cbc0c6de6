"""Whether a job's difference to the winner is significant with respect to the choice of evaluation rows.

The rows are resampled with replacement, the same ones for both jobs (a paired bootstrap), and the difference of the
metric is computed each time: 95% of these lie within the interval. It covers other rows of the same kind, but not other
seeds: for these a sweep over `seed` has the spread of each point.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sft.evaluation.rows import NAME
from sft.run.directory import RunDirectory
from sft.sweep.results import JobResult

RESAMPLES, CONFIDENCE, SEED = 4999, 0.95, 0
FEWEST = 2  # rows

_FIGURE = re.compile(r"eval_(?:(?P<source>.+)_)?(?P<figure>loss|perplexity|token_accuracy|exact_match)")

Rows = dict[str, np.ndarray]  # of a figure and its weight, [rows]


@dataclass(frozen=True)
class Difference:
    """A job's metric minus the winner's, over their common rows.

    Attributes:
        low, high: the ends of the 95% interval.
        rows: how many were compared.
        verdict: "better", "worse", or "not told apart".
    """

    low: float
    high: float
    rows: int
    verdict: str


def differences(
    winner: JobResult | None, ranked: Sequence[JobResult], objective: str, direction: str
) -> dict[int, Difference]:
    """The difference of each job but the winner, by its number; jobs that cannot be compared row by row are omitted.

    Args:
        ranked: jobs that have the objective.
        objective: eval_loss, eval_exact_match and their like, of all sources or of one.
        direction: minimize or maximize.
    """
    best = None if winner is None else _rows_of(winner.path, objective)
    if winner is None or best is None:
        return {}
    found = {}
    for job in ranked:
        rows = None if job is winner else _rows_of(job.path, objective)
        if rows is not None and _same_rows(winner.path, job.path) and len(rows["value"]) == len(best["value"]):
            found[job.number] = difference(rows, best, direction, perplexity=objective.endswith("perplexity"))
    return found


def difference(rows: Rows, best: Rows, direction: str, perplexity: bool = False) -> Difference:
    """The interval of two jobs' difference.

    Args:
        rows, best: `value` and `weight` of each row; the metric is the sum of values over the sum of weights.
        direction: minimize or maximize.
        perplexity: the metric is the exponential of that.
    """
    from scipy.stats import bootstrap

    weights, metric = best["weight"], np.exp if perplexity else np.positive

    def statistic(own: Any, other: Any, weight: Any, axis: int = -1) -> Any:
        return metric(own.sum(axis) / weight.sum(axis)) - metric(other.sum(axis) / weight.sum(axis))

    gaps = rows["value"] - best["value"]
    if not gaps.any():
        return Difference(0.0, 0.0, len(gaps), "not told apart")
    found = bootstrap(
        (rows["value"], best["value"], weights),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 2**22 // len(gaps)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    low, high = float(found.low), float(found.high)
    if low <= 0 <= high:
        return Difference(low, high, len(gaps), "not told apart")
    smaller = high < 0
    return Difference(low, high, len(gaps), "better" if smaller == (direction == "minimize") else "worse")


def _rows_of(path: Path | None, objective: str) -> Rows | None:
    """The rows' values and weights for a metric; None if it is not a mean over rows, or none are stored."""
    match = _FIGURE.fullmatch(objective)
    content = None if path is None else RunDirectory(path).read_json(NAME)
    if match is None or not isinstance(content, dict):
        return None
    source, figure = match["source"], match["figure"]
    parts = [content[source]] if source in content else list(content.values()) if source is None else []
    column = {"perplexity": "loss", "token_accuracy": "correct"}.get(figure, figure)
    try:
        value = np.array([each for part in parts for each in part.get(column, [])], float)
        weight = np.array([each for part in parts for each in part.get("tokens", [])], float)
    except (TypeError, ValueError, AttributeError):
        return None
    if figure == "exact_match":
        weight = np.ones_like(value)
    kept = weight > 0
    if len(value) != len(weight) or kept.sum() < FEWEST:
        return None
    return {"value": value[kept], "weight": weight[kept]}


def _same_rows(first: Path | None, second: Path | None) -> bool:
    """Whether two runs were evaluated on the same rows."""
    found = []
    for path in (first, second):
        record = RunDirectory(path).read_json("run.json") if path is not None else None
        data = record.get("data") if isinstance(record, dict) else None
        found.append(data.get("eval_sources") if isinstance(data, dict) else None)
    return found[0] is not None and found[0] == found[1]
