"""Mixtures: how many rows each source contributes, and which. All depends only on counts, weights and the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Mixture:
    """Rows drawn from each source.

    Args:
        rows: per source, indices into its rows, ascending; a row that is repeated stands there several times.
        shares: per source, the share of the mixture that its weight asks for, in [0, 1].
        limited_by: the source that limited the size because it has too few rows for its weight, if others have more.
    """

    rows: dict[str, np.ndarray]
    shares: dict[str, float]
    limited_by: str | None = None

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows.values())


def mix(counts: Mapping[str, int], weights: Mapping[str, float | None], *, size: int | None, seed: int) -> Mixture:
    """Draw a mixture in which each source has its weight's share to within one row.

    Args:
        counts: rows that each source has.
        weights: relative weights; None everywhere means every row alike, among stated ones it means 1.
        size: rows in the mixture; None: the most for which no source is asked for more rows than it has.
        seed: which rows are drawn; the draw of one source does not depend on the other sources.

    Raises:
        ValueError: a source with a weight above 0 has no rows, or every weight is 0.
    """
    relative = _relative(counts, weights)
    total = sum(relative.values())
    if not total:
        raise ValueError("every weight is 0")
    empty = [name for name, weight in relative.items() if weight and not counts[name]]
    if empty:
        raise ValueError(f"no rows in {', '.join(empty)}")
    limited_by = None
    if size is None:
        size = largest_without_repeats(counts, relative)
        limited_by = _shortest(counts, relative, size)
    wanted = apportion(size, relative)
    rows = {name: draw(counts[name], wanted[name], seed=seed, name=name) for name in counts}
    return Mixture(rows, {name: float(weight / total) for name, weight in relative.items()}, limited_by)


def apportion(size: int, weights: Mapping[str, Fraction]) -> dict[str, int]:
    """Apportion `size` rows by weight, each share within one row of the exact one (largest remainders)."""
    total = sum(weights.values())
    exact = {name: size * weight / total for name, weight in weights.items()}
    given = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: given[name] - exact[name])  # stable: ties in the order of the sources
    for name in by_remainder[: size - sum(given.values())]:
        given[name] += 1
    return given


def largest_without_repeats(counts: Mapping[str, int], weights: Mapping[str, Fraction]) -> int:
    """The largest size at which no source is asked for more rows than it has."""
    total = sum(weights.values())
    return min(int(counts[name] * total / weight) for name, weight in weights.items() if weight)


def _shortest(counts: Mapping[str, int], weights: Mapping[str, Fraction], size: int) -> str | None:
    """The source that limits the size; None where all rows of every source are drawn."""
    weighted = {name: weight for name, weight in weights.items() if weight}
    if size >= sum(counts[name] for name in weighted):
        return None
    return min(weighted, key=lambda name: counts[name] / weighted[name])


def draw(count: int, wanted: int, *, seed: int, name: str) -> np.ndarray:
    """`wanted` of `count` rows, ascending, each equally often or once more. A smaller draw is part of a larger one."""
    if not wanted:
        return np.empty(0, np.int64)
    rounds, rest = divmod(wanted, count)
    extra = _generator(seed, name).permutation(count)[:rest]
    return np.sort(np.concatenate([np.tile(np.arange(count, dtype=np.int64), rounds), extra]))


def _relative(counts: Mapping[str, int], weights: Mapping[str, float | None]) -> dict[str, Fraction]:
    """Weights as exact decimal fractions: 0.1 is a tenth, so 0.7 of 10 rows is 7 and not 6.999..."""
    stated = {name: weights.get(name) for name in counts}
    if all(weight is None for weight in stated.values()):
        return {name: Fraction(count) for name, count in counts.items()}
    return {name: Fraction(1) if weight is None else Fraction(repr(weight)) for name, weight in stated.items()}


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "big")])
