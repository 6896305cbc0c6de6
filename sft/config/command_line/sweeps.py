"""The jobs that a command line with `-m` stands for."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from sft.config.command_line.overrides import parse_overrides
from sft.config.errors import UserError

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.types import Override

# Checking every job of a huge grid would take too long; a mistake also shows in any other job that shares it.
MOST_JOBS_CHECKED = 256
MOST_JOBS = 100_000


def expand_sweep(
    overrides: list[str], loader: ConfigLoaderImpl, most: int | None = MOST_JOBS_CHECKED
) -> list[list[str]]:
    """The jobs of a sweep: the product of its choices, the ends of its intervals.

    Args:
        loader: knows the options of groups, which `glob(...)` chooses from.
        most: a larger product is reduced to some jobs in which every value occurs; None: all jobs.

    Raises:
        UserError: a range that never ends, or, where all jobs are wanted, more jobs than a sweep may have.
    """
    axes: list[list[str]] = []
    for override in parse_overrides(overrides, loader):
        key = f"{'+' * (override.is_add() + override.is_force_add())}{override.get_key_element().lstrip('+')}"
        if not override.is_sweep_override():
            axes.append([override.input_line or ""])
        elif override.is_discrete_sweep():
            axes.append([f"{key}={value}" for value in _values(override, key, most is None)])
        else:
            interval: Any = override.value()
            axes.append([f"{key}={interval.start}", f"{key}={interval.end}"])
    total = math.prod(len(axis) for axis in axes)
    if most is None and total > MOST_JOBS:
        raise _too_many(total)
    if most is None or total <= most:
        return [list(job) for job in itertools.product(*axes)]
    longest = max(len(axis) for axis in axes)
    return [[axis[min(index, len(axis) - 1)] for axis in axes] for index in range(longest)]


def _values(override: Override, key: str, all_of_them: bool) -> list[Any]:
    """The values of a discrete sweep of one key; of a range that is longer than any sweep only its ends."""
    from hydra.core.override_parser.types import RangeSweep

    value = override.value()
    if not isinstance(value, RangeSweep):
        return list(override.sweep_string_iterator())
    start, stop, step = (float(each) for each in (value.start, value.stop, value.step))  # type: ignore[arg-type]
    length = (stop - start) / step if step and math.isfinite(step) else math.nan
    if not math.isfinite(length):
        raise UserError(
            f"range({value.start}, {value.stop}, {value.step}) has no end",
            where=key,
            remedy="range(start,stop,step) goes from start to before stop",
        )
    if length <= MOST_JOBS:
        return list(override.sweep_string_iterator())
    if all_of_them:
        raise _too_many(math.ceil(length), key)
    return [value.start, value.stop]


def _too_many(jobs: int, where: str = "-m") -> UserError:
    return UserError(
        f"this sweep has {jobs:,} runs, and a grid may have at most {MOST_JOBS:,}",
        where=where,
        remedy="fewer values, or a search among them: hydra/sweeper=optuna hydra.sweeper.n_trials=50",
    )
