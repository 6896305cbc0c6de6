"""curves.png: loss, evaluation loss, learning rate and gradient norm over the steps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sft.drawing.canvas import Curve, empty, new_figure, printable
from sft.run.directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_EVAL_LOSS = re.compile(r"^eval_(?:(?P<part>.+)_)?loss$")


def write_curves(
    run: RunDirectory, history: Iterable[Mapping[str, Any]] | None = None, title: str | None = None
) -> None:
    """Draw curves.png from metrics.jsonl, or from ``history`` (a trainer's log history) where one is given.

    An empty history gives an empty picture with a note; values that are not numbers leave gaps.
    """
    lines = list(run.read_jsonl(run.metrics_jsonl) if history is None else history)
    run.write_with(run.curves_png, lambda path: _draw(lines, title or run.path.name, str(path)))


def curves(history: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """``{name: (steps, values)}`` of loss, learning_rate, grad_norm and each evaluation loss, in the order of the steps.

    NaN stays where something other than a number was logged, so that a line breaks there.
    """
    found: dict[str, dict[float, float]] = {}
    for line in history:
        step = line.get("step")
        if not isinstance(step, int | float):
            continue
        for key, value in line.items():
            if key in ("loss", "learning_rate", "grad_norm") or _EVAL_LOSS.match(key):
                found.setdefault(key, {})[float(step)] = _number(value)
    return {key: (sorted(points), [points[step] for step in sorted(points)]) for key, points in found.items()}


def _draw(history: list[Mapping[str, Any]], title: str, path: str) -> None:
    found = curves(history)
    figure = new_figure((9, 9), layout=None)  # solving a layout costs as much again
    figure.subplots_adjust(left=0.1, right=0.97, top=0.94, bottom=0.06, hspace=0.08)
    losses, rate, norm = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [2, 1, 1]})
    for key, curve in found.items():
        if key == "loss" or _EVAL_LOSS.match(key):
            _line(losses, curve, _label(key), dots=key != "loss")
    _line(rate, found.get("learning_rate"), None)
    _line(norm, found.get("grad_norm"), None)
    for axes, name in ((losses, "loss (nats per token)"), (rate, "learning rate"), (norm, "gradient norm")):
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        if not axes.lines:
            empty(axes, "nothing logged")
    if losses.lines:
        losses.legend()
    norm.set_xlabel("step")
    figure.suptitle(printable(title))
    figure.savefig(path, dpi=110, format="png")


def _line(axes: Axes, curve: Curve | None, label: str | None, dots: bool = False) -> None:
    if curve and any(math.isfinite(value) for value in curve[1]):
        few = sum(math.isfinite(value) for value in curve[1]) <= 2  # a line through a single point would be invisible
        axes.plot(*curve, label=label, marker="o" if dots or few else None, markersize=4, linewidth=1.4)


def _label(key: str) -> str:
    match = _EVAL_LOSS.match(key)
    if match is None:
        return "training"
    return f"evaluation: {printable(match['part'])}" if match["part"] else "evaluation"


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan
