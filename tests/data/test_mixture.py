"""Mixtures match their weights within one row, and depend only on counts, weights and seed."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.mixture import apportion, draw, mix

WEIGHT = st.floats(0.01, 10, allow_nan=False).map(lambda weight: round(weight, 3))
SOURCES = st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 300), WEIGHT), min_size=1)


@given(SOURCES, st.one_of(st.none(), st.integers(1, 1000)), st.integers(0, 3))
def test_weights_are_matched_within_one_row(sources, size, seed):
    counts = {name: count for name, (count, _) in sources.items()}
    weights = {name: weight for name, (_, weight) in sources.items()}
    mixture = mix(counts, weights, size=size, seed=seed)
    total = sum(Fraction(repr(weight)) for weight in weights.values())
    for name, rows in mixture.rows.items():
        asked = len(mixture) * Fraction(repr(weights[name])) / total
        assert abs(len(rows) - asked) < 1
        times = np.bincount(rows, minlength=counts[name])
        assert len(times) == counts[name] and times.max() - times.min() <= 1
    if size is None:
        assert all(len(set(rows.tolist())) == len(rows) for rows in mixture.rows.values())
    else:
        assert len(mixture) == size


@given(SOURCES)
def test_the_largest_mixture_that_repeats_nothing_is_taken(sources):
    counts = {name: count for name, (count, _) in sources.items()}
    exact = {name: Fraction(repr(weight)) for name, (_, weight) in sources.items()}
    mixture = mix(counts, {name: weight for name, (_, weight) in sources.items()}, size=None, seed=0)
    total = sum(exact.values())
    assert all(len(mixture) * exact[name] / total <= counts[name] for name in counts)
    assert any((len(mixture) + 1) * exact[name] / total > counts[name] for name in counts)


def test_no_weights_and_no_size_take_every_row_once():
    mixture = mix({"a": 3, "b": 5}, {"a": None, "b": None}, size=None, seed=0)
    assert {name: rows.tolist() for name, rows in mixture.rows.items()} == {"a": [0, 1, 2], "b": [0, 1, 2, 3, 4]}


@pytest.mark.parametrize("weight", [None, 0.3, 7])
def test_one_source_gives_all_its_rows_once_whatever_its_weight(weight):
    assert mix({"a": 4}, {"a": weight}, size=None, seed=9).rows["a"].tolist() == [0, 1, 2, 3]


def test_a_zero_weight_selects_no_rows():
    mixture = mix({"a": 4, "b": 4}, {"a": 1, "b": 0}, size=None, seed=0)
    assert {name: len(rows) for name, rows in mixture.rows.items()} == {"a": 4, "b": 0}
    assert mixture.shares == {"a": 1.0, "b": 0.0}


def test_decimal_weights_are_exact():
    assert apportion(10, {"a": Fraction("0.7"), "b": Fraction("0.2"), "c": Fraction("0.1")}) == {"a": 7, "b": 2, "c": 1}


@given(st.integers(1, 50), st.integers(0, 200), st.integers(0, 200))
def test_a_smaller_sample_is_part_of_a_larger_one(count, one, two):
    small, large = (np.bincount(draw(count, n, seed=4, name="a"), minlength=count) for n in sorted((one, two)))
    assert (small <= large).all()


def test_the_sample_of_a_source_depends_only_on_seed_and_name():
    alone = mix({"a": 100, "b": 100}, {"a": 0.5, "b": 0.5}, size=60, seed=1).rows["a"]
    among = mix({"c": 9, "a": 100}, {"a": 0.5, "c": 0.5}, size=60, seed=1).rows["a"]
    other = mix({"a": 100, "b": 100}, {"a": 0.5, "b": 0.5}, size=60, seed=2).rows["a"]
    assert alone.tolist() == among.tolist() != other.tolist()


def test_a_weighted_source_without_rows_is_an_error():
    with pytest.raises(ValueError, match="no rows in b"):
        mix({"a": 4, "b": 0}, {"a": 1, "b": 1}, size=None, seed=0)


def test_the_source_that_limits_a_mixture_is_named():
    counts = {"small": 10, "large": 100}
    assert mix(counts, {"small": 1, "large": 1}, size=None, seed=0).limited_by == "small"
    assert mix(counts, {"small": 1, "large": 1}, size=500, seed=0).limited_by is None
    assert mix(counts, {"small": None, "large": None}, size=None, seed=0).limited_by is None
    assert mix(counts, {"small": 1, "large": 10}, size=None, seed=0).limited_by is None
    assert mix(counts, {"small": 0, "large": 1}, size=None, seed=0).limited_by is None
