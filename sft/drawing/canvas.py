"""Drawing in the style of curves.png: without a display, global state or math text."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.config.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NAMED = 24
Curve = tuple[list[float], list[float]]  # steps and values
Line = tuple[str, Curve | None, dict[str, Any]]


def new_figure(size: tuple[float, float], layout: str | None = "constrained") -> Figure:
    """A figure without pyplot, so that it needs no display, nothing is global and it is safe in threads.

    Args:
        size: width and height in inches.
        layout: how its parts are arranged; None leaves that to the caller, which costs half as much.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format that the path's suffix names; characters that the font lacks are drawn as boxes,
    without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*missing from font.*")
        figure.savefig(path, dpi=110, format=path.suffix.lstrip(".").lower() or "png")


def printable(text: str, most: int | None = None) -> str:
    """Text on one line, with the dollar signs escaped that matplotlib would read as mathematics."""
    return one_line(text, most).replace("$", r"\$")


def empty(axes: Axes, text: str) -> None:
    """Write into an empty panel why it is empty."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="gray")


def colours(count: int) -> list[Any]:
    """So many colours from dark (first) to light."""
    from matplotlib import colormaps

    shades = colormaps["viridis"]
    return [shades(0.9 * index / max(count - 1, 1)) for index in range(count)]


def spread_out(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where one value is so large that the others would be drawn flat at the bottom."""
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")


def draw_curves(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw named curves with a legend next to them.

    Args:
        lines: label, curve (None for one that has nothing), and how to draw it: `end` is a marker for its last point,
            the rest goes to matplotlib.
    """
    named = 0
    for label, curve, look in lines:
        drawn = dict(look)
        end = drawn.pop("end", None)
        if not curve or not any(math.isfinite(value) for value in curve[1]):
            continue
        points = [(step, value) for step, value in zip(*curve, strict=True) if math.isfinite(value)]
        dots = "o" if len(points) <= 12 else None  # a line through a single point would be invisible
        # a leading underscore hides a line from the legend
        text = f"\u200a{label}" if named < _MOST_NAMED else "_"
        axes.plot(*curve, label=text, marker=dots, markersize=3.5, linewidth=1.4, **drawn)
        if end:
            axes.plot(*points[-1], marker=end, markersize=9, color=drawn.get("color"), linestyle="none")
        named += 1
    axes.grid(alpha=0.3)
    finite = [value for _, curve, _ in lines if curve for value in curve[1] if math.isfinite(value)]
    spread_out(axes, finite)
    if not named:
        empty(axes, "nothing logged")
        return
    title = f"the first {_MOST_NAMED} of {named}" if named > _MOST_NAMED else None
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), title=title, title_fontsize=7)
