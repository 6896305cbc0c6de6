"""Two swept keys at once: the mean objective of each pair of values as a heat map, of scattered pairs as dots."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from sft.drawing.canvas import empty, printable
from sft.drawing.scale import Scale, scale_of
from sft.sweep.ranking import Leaderboard

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CELLS = 144


def draw_heatmap(axes: Axes, board: Leaderboard, keys: tuple[str, str]) -> None:
    """Draw the mean of the finished jobs of each pair; a cell without any shows the status of its jobs."""
    across, up = (scale_of([job.values.get(key) for job in board.sweep.jobs]) for key in keys)
    axes.set_xlabel(printable(keys[0], 60))
    axes.set_ylabel(printable(keys[1], 60))
    axes.set_title(printable(f"mean {board.objective}", 50), fontsize=10)
    if not board.ranked:
        empty(axes, "no finished job has the metric")
        return
    cells = len(across.values) * len(up.values)
    if cells <= _MOST_CELLS and (cells <= 16 or len(board.points) * 2 >= cells):
        _grid(axes, board, keys, across, up)
    else:
        _dots(axes, board, keys, across, up)


def _grid(axes: Axes, board: Leaderboard, keys: tuple[str, str], across: Scale, up: Scale) -> None:
    import numpy as np

    found: dict[tuple[int, int], list[float]] = {}
    lost: dict[tuple[int, int], str] = {}
    for job in board.sweep.jobs:
        place = up.index(job.values.get(keys[1])), across.index(job.values.get(keys[0]))
        if job in board.ranked:
            found.setdefault(place, []).append(board.score(job) or 0.0)
        else:
            lost[place] = job.status
    means = np.full((len(up.values), len(across.values)), np.nan)
    for place, scores in found.items():
        means[place] = statistics.mean(scores)
    shown = np.ma.masked_invalid(means)
    image = axes.imshow(shown, cmap=_shades(board), aspect="auto", origin="lower")
    middle = (shown.min() + shown.max()) / 2
    for place in {**lost, **found}:
        row, column = place
        text = f"{means[place]:.4g}" if place in found else lost[place]
        # the best values are dark on either scale
        dark = place in found and (means[place] <= middle) == (board.direction == "minimize")
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    for axis, scale in ((axes.xaxis, across), (axes.yaxis, up)):
        Scale(scale.labels(), numeric=False, log=False).apply(axis)
    axes.figure.colorbar(image, ax=axes)


def _dots(axes: Axes, board: Leaderboard, keys: tuple[str, str], across: Scale, up: Scale) -> None:
    """A search seldom tries a value twice: each job is a dot, coloured by its metric."""
    xs = [across.at(job.values.get(keys[0])) for job in board.ranked]
    ys = [up.at(job.values.get(keys[1])) for job in board.ranked]
    dots = axes.scatter(xs, ys, c=[board.score(job) or 0.0 for job in board.ranked], cmap=_shades(board), s=60)
    for job in board.unranked:
        at = across.at(job.values.get(keys[0])), up.at(job.values.get(keys[1]))
        axes.scatter(*at, marker="v" if job.status == "pruned" else "x", color="gray", s=40)
    for axis, scale in ((axes.xaxis, across), (axes.yaxis, up)):
        scale.apply(axis)
    axes.grid(alpha=0.3)
    axes.figure.colorbar(dots, ax=axes)


def _shades(board: Leaderboard) -> str:
    return "viridis" if board.direction == "minimize" else "viridis_r"
