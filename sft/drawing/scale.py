"""The axis of a swept key: linear or logarithmic for numbers, categorical for anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft.drawing.canvas import printable
from sft.sweep.ranking import as_number
from sft.sweep.text import short

if TYPE_CHECKING:
    from matplotlib.axis import Axis

_MOST_TICKS = 12


@dataclass
class Scale:
    """An axis for one swept key.

    Attributes:
        values: the distinct values, in the order that they have on the axis.
        numeric: whether all are numbers.
        log: whether the axis is logarithmic.
    """

    values: list[Any]
    numeric: bool
    log: bool

    def at(self, value: Any) -> float:
        """A value's position: the number itself, or the index of anything else."""
        number = as_number(value)
        return number if self.numeric and number is not None else float(self.values.index(_text(value)))

    def index(self, value: Any) -> int:
        """The value's index among the distinct ones."""
        return self.values.index(as_number(value) if self.numeric else _text(value))

    def labels(self) -> list[str]:
        """The tick labels of the distinct values."""
        if self.numeric:
            return [f"{value:.4g}" for value in self.values]
        return [printable(value, 18) or "(none)" for value in self.values]

    def apply(self, axis: Axis) -> None:
        """Scale and ticks of an axis: one at each value while they are few."""
        if self.log:
            (axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale)("log")
        if len(self.values) <= _MOST_TICKS or not self.numeric:
            from matplotlib.ticker import FixedLocator, NullLocator

            places = self.values if self.numeric else list(range(len(self.values)))
            step = -(-len(places) // _MOST_TICKS)
            axis.set_major_locator(FixedLocator(places[::step]))
            axis.set_minor_locator(NullLocator())
            axis.set_ticklabels(self.labels()[::step], fontsize=8)
            if len(self.values) > 4 or max(map(len, self.labels())) > 8:
                axis.set_tick_params(rotation=25)


def scale_of(values: Sequence[Any]) -> Scale:
    """The axis for a key's values: numbers by their logarithm where they are positive and span a decade or more."""
    numbers = [as_number(value) for value in values]
    distinct = sorted({number for number in numbers if number is not None})
    if not distinct or None in numbers:
        return Scale(list(dict.fromkeys(map(_text, values))), numeric=False, log=False)
    log = distinct[0] > 0 and distinct[-1] >= 9.99 * distinct[0]
    return Scale(distinct, numeric=True, log=log)


def _text(value: Any) -> str:
    return short(value, 200)
