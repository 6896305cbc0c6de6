"""A search space in Hydra's grammar as Optuna distributions, and a point of it as a job's overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft.config.errors import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
    from optuna.distributions import BaseDistribution

# Sampled numbers are rounded to this many digits before use, for readable names that can be typed again.
DIGITS = 4


@dataclass
class Space:
    """The search space of a command line.

    Attributes:
        arguments: every override in the order given: (key as an override has it, None) for a searched one, else
            (None, the override).
        distributions: of each searched key, without its `+`.
    """

    arguments: list[tuple[str | None, str]]
    distributions: dict[str, BaseDistribution]

    def overrides(self, point: Mapping[str, Any]) -> list[str]:
        """One job's overrides.

        Args:
            point: {searched key: value}, as sampled by Optuna.
        """
        return [
            text if key is None else f"{text}={as_text(point[key], self.distributions[key])}"
            for key, text in self.arguments
        ]

    def texts(self, point: Mapping[str, Any]) -> dict[str, str]:
        """{searched key: value as the job's override has it}."""
        return {key: as_text(point[key], distribution) for key, distribution in self.distributions.items()}


def parse_space(arguments: Sequence[str], loader: Any = None) -> Space:
    """The space of a multirun's overrides.

    Args:
        arguments: `lora.r=choice(4,8)`, `trainer.learning_rate=tag(log, interval(1e-5,1e-3))`, `int(interval(1,8))`,
            `range(1,9,2)`, `glob(*)`; overrides without a sweep are the same in every job.
        loader: Hydra's config loader, which glob() asks for a group's options.

    Raises:
        UserError: there is nothing to search over, a key occurs twice, or the space cannot be sampled.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found = Space([], {})
    for override in OverridesParser.create(loader).parse_overrides(list(arguments)):
        if not override.is_sweep_override():
            found.arguments.append((None, override.input_line or ""))
            continue
        key = override.key_or_group
        if key in found.distributions:
            raise UserError("is searched over twice", where=key, remedy="leave one of the two out")
        found.arguments.append((key, override.get_key_element()))
        found.distributions[key] = _distribution(override)
    if not found.distributions:
        raise UserError(
            "there is nothing to search over",
            where="hydra/sweeper=optuna",
            remedy="'lora.r=choice(8,16,32)' 'trainer.learning_rate=tag(log, interval(1e-5,1e-3))'",
        )
    return found


def as_text(value: Any, distribution: BaseDistribution) -> str:
    """A sampled value as in an override: a float rounded to four digits, within its interval."""
    from optuna.distributions import FloatDistribution

    if not isinstance(distribution, FloatDistribution):
        return str(value)
    rounded = float(f"{value:.{DIGITS}g}")
    return repr(min(max(rounded, distribution.low), distribution.high))


def grid(space: Space) -> list[dict[str, Any]]:
    """Every point of a space, the last key changing fastest.

    Raises:
        UserError: an interval has infinitely many points.
    """
    import itertools

    axes = [_points(key, distribution) for key, distribution in space.distributions.items()]
    return [dict(zip(space.distributions, values, strict=True)) for values in itertools.product(*axes)]


def _points(key: str, distribution: Any) -> list[Any]:
    from optuna.distributions import CategoricalDistribution

    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if distribution.step is None or distribution.log:
        remedy = "choice(...) or range(...), or another hydra.sweeper.sampler"
        raise UserError("a grid cannot sample an interval", where=key, remedy=remedy)
    many = round((distribution.high - distribution.low) / distribution.step) + 1
    return [min(distribution.low + i * distribution.step, distribution.high) for i in range(many)]


def _distribution(override: Override) -> BaseDistribution:
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from optuna.distributions import CategoricalDistribution

    value: Any = override.value()
    where, tags = override.key_or_group, set(getattr(value, "tags", ()))
    if tags - {"log"}:
        raise UserError(
            f"unknown tag {', '.join(sorted(tags - {'log'}))}", where=where, remedy="tag(log, interval(...))"
        )
    if isinstance(value, IntervalSweep):
        return _interval(value, where, log="log" in tags)
    if tags:
        raise UserError("only an interval has a log scale", where=where, remedy="tag(log, interval(1e-5,1e-3))")
    if getattr(value, "shuffle", False):
        value.shuffle = False  # the sampler randomizes; a study's choices must keep their order
    if isinstance(value, RangeSweep):
        return _range(value, where)
    choices = list(dict.fromkeys(override.sweep_string_iterator()))
    if not choices:
        raise UserError("has nothing to choose from", where=where, remedy="choice(A,B)")
    return CategoricalDistribution(choices)


def _interval(value: IntervalSweep, where: str, log: bool) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    low, high = value.start, value.end
    assert low is not None and high is not None
    if low > high:
        raise UserError(f"begins at {low} and ends before it", where=where, remedy=f"interval({high},{low})")
    if log and low <= 0:
        raise UserError(f"a log scale begins above 0, not at {low}", where=where, remedy="a positive start")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _range(value: RangeSweep, where: str) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    values: list[Any] = list(value.range())
    if not values:
        raise UserError("is an empty range", where=where, remedy="range(start,stop,step), the stop left out")
    low, high, step = min(values[0], values[-1]), max(values[0], values[-1]), abs(value.step)
    if all(isinstance(each, int) for each in values):
        return IntDistribution(low, high, step=int(step))
    return FloatDistribution(float(low), float(high), step=float(step))
