"""leaderboard.png: the objective against each swept key, a heat map of two, and every job's evaluation loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.drawing.canvas import colours, draw_curves, empty, new_figure, printable, save, spread_out
from sft.drawing.heatmap import draw_heatmap
from sft.drawing.scale import Scale, scale_of
from sft.sweep.ranking import Leaderboard, as_number, point_keys
from sft.sweep.results import JobResult
from sft.sweep.text import short, short_keys

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PANELS = 9
_COLUMNS = 3
# by status of jobs that are not finished: marker, colour
_MARKS = {"pruned": ("v", "tab:orange"), "failed": ("x", "tab:red")}
_OTHER = ("d", "gray")


def draw_leaderboard(board: Leaderboard, path: Path) -> None:
    """Draw the picture; jobs without a metric are marked at the top of a panel, at their swept value."""
    keys = point_keys(board.sweep.keys)
    panels = (keys or board.sweep.keys)[:_MOST_PANELS]
    mapped = len(keys) == 2
    cells = len(panels) + mapped
    rows = -(-cells // _COLUMNS)
    figure = new_figure((13, 4.0 * rows + 5.2))
    # a sweep without a swept key has only curves
    above, below = figure.subfigures(2, 1, height_ratios=[4.0 * rows, 4.8]) if rows else (None, figure)  # type: ignore[misc]
    if above is not None:
        grid = above.add_gridspec(rows, _COLUMNS * 2)
        places = [grid[row, part] for row in range(rows) for part in _parts(min(_COLUMNS, cells - row * _COLUMNS))]
        axes = [above.add_subplot(place) for place in places]
        for key, each in zip(panels, axes, strict=False):
            _draw_key(each, board, key)
        if mapped:
            draw_heatmap(axes[-1], board, (keys[0], keys[1]))
        named = {text: handle for each in axes for handle, text in zip(*each.get_legend_handles_labels(), strict=True)}
        above.legend(named.values(), named.keys(), loc="outside upper center", ncols=8, fontsize=8, frameon=False)
    _draw_jobs(below.add_subplot(), board)
    hidden = len(keys or board.sweep.keys) - len(panels)
    more = f" ({hidden} more swept keys are only in leaderboard.csv)" if hidden else ""
    figure.suptitle(printable(f"{board.directory.name}: {board.objective}, {board.direction}", 100) + more)
    save(figure, path)


def _parts(count: int) -> list[slice]:
    """The columns of a row of panels, six in all: an incomplete row is stretched."""
    width = 6 // count
    return [slice(index * width, (index + 1) * width) for index in range(count)]


def _draw_key(axes: Axes, board: Leaderboard, key: str) -> None:
    """The objective of each job against one key; a line through the mean of each value, with bars for the spread."""
    scale = scale_of([job.values.get(key) for job in board.sweep.jobs])
    xs = [scale.at(job.values.get(key)) for job in board.ranked]
    ys = [board.score(job) or 0.0 for job in board.ranked]
    axes.scatter(xs, ys, s=22, color="tab:blue", alpha=0.45 if board.repeated else 0.9, zorder=3, label="finished")
    _draw_means(axes, board, key, scale)
    for job in board.unranked:
        marker, colour = _MARKS.get(job.status, _OTHER)
        score = board.score(job)
        top = {"y": 0.96, "transform": axes.get_xaxis_transform()}
        place: dict[str, Any] = {"y": score} if score is not None else top
        label = None if job.status in axes.get_legend_handles_labels()[1] else job.status
        axes.scatter(scale.at(job.values.get(key)), marker=marker, color=colour, s=40, zorder=4, label=label, **place)
    if board.winner is not None and (best := board.score(board.winner)) is not None:
        at = scale.at(board.winner.values.get(key))
        axes.scatter(
            at, best, s=130, facecolors="none", edgecolors="tab:green", linewidths=1.8, zorder=5, label="winner"
        )
    if not ys:
        empty(axes, "no finished job has the metric")
    scale.apply(axes.xaxis)
    spread_out(axes, [score for job in board.sweep.jobs if (score := board.score(job)) is not None])
    axes.set_xlabel(printable(key, 60))
    axes.set_ylabel(printable(board.objective, 40))
    axes.grid(alpha=0.3)


def _draw_means(axes: Axes, board: Leaderboard, key: str, scale: Scale) -> None:
    """A line through the mean of each value of a numeric key; with repeated points, each point's mean and spread."""
    found: dict[float, list[float]] = {}
    for job in board.ranked:
        found.setdefault(scale.at(job.values.get(key)), []).append(board.score(job) or 0.0)
    # a search tries no value twice: a line through all dots would be noise
    shared = len(found) < len(board.ranked) or len(board.sweep.keys) == 1
    if scale.numeric and shared and len(found) > 1:
        line = sorted((x, sum(scores) / len(scores)) for x, scores in found.items())
        axes.plot(*zip(*line, strict=True), color="tab:blue", linewidth=1.2, alpha=0.6, label="mean of each value")
    scored = [point for point in board.points if point.scores]
    if board.repeated and key in point_keys(board.sweep.keys) and scored:
        axes.errorbar(
            [scale.at(point.values[key]) for point in scored],
            [point.mean or 0.0 for point in scored],
            yerr=[point.spread or 0.0 for point in scored],
            fmt="_",
            color="black",
            markersize=9,
            capsize=3,
            linewidth=1,
            zorder=4,
            label="mean and spread of a point",
        )


def _draw_jobs(axes: Axes, board: Leaderboard) -> None:
    """The evaluation loss of every job over its steps, or the training loss where no job was evaluated."""
    jobs = [*board.ranked, *board.unranked]
    name = "eval_loss" if any("eval_loss" in job.curves for job in jobs) else "loss"
    lines = []
    shades = dict(zip(map(id, board.ranked), colours(len(board.ranked)), strict=True))
    for job in jobs:
        marker, colour = (None, shades[id(job)]) if id(job) in shades else _MARKS.get(job.status, _OTHER)
        style = "-" if id(job) in shades else "--"
        label = _label(board, job)
        lines.append((label, job.curves.get(name), {"color": colour, "linestyle": style, "end": marker}))
    draw_curves(axes, lines)
    axes.set_xlabel("step")
    axes.set_ylabel("evaluation loss (nats per token)" if name == "eval_loss" else "training loss (nats per token)")


def _label(board: Leaderboard, job: JobResult) -> str:
    names = short_keys(board.sweep.keys)
    setting = ", ".join(f"{names[key]}={_value(job.values.get(key))}" for key in board.sweep.keys) or job.name
    status = "" if job in board.ranked else f" ({job.status})"
    return printable(f"{job.number}: {setting}", 46) + status


def _value(value: Any) -> str:
    number = as_number(value)
    return f"{number:.4g}" if number is not None else short(value, 20)
