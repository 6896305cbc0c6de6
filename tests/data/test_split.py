"""The evaluation split depends only on content and seed; equal rows stay together."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sft.data.split import combined, held_out

GROUPS = st.lists(st.integers(0, 2**64 - 1), max_size=60).map(lambda values: np.array(values, np.uint64))
FEW = st.lists(st.integers(0, 9), max_size=60).map(lambda values: np.array(values, np.uint64))


@given(st.one_of(GROUPS, FEW), st.floats(0.01, 0.9), st.integers(0, 5))
def test_equal_rows_are_never_on_both_sides(groups, fraction, seed):
    held = held_out(groups, fraction, seed)
    assert not set(groups[held].tolist()) & set(groups[~held].tolist())
    assert not len(groups) or not held.all()


@given(st.one_of(GROUPS, FEW), st.floats(0.01, 0.9), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_order_of_the_file_does_not_matter(groups, fraction, seed, random):
    order = list(range(len(groups)))
    random.shuffle(order)
    held = held_out(groups, fraction, seed)
    assert held_out(groups[order], fraction, seed).tolist() == held[order].tolist()


@given(st.sets(st.integers(0, 2**64 - 1), min_size=2, max_size=80), st.floats(0.01, 0.9))
def test_distinct_rows_give_the_fraction_exactly(values, fraction):
    groups = np.array(sorted(values), np.uint64)
    held = held_out(groups, fraction, 0)
    assert held.sum() == max(1, min(round(fraction * len(groups)), len(groups) - 1))


def test_nothing_is_held_out_of_zero_one_or_equal_rows():
    for groups in ([], [7], [7, 7, 7]):
        assert not held_out(np.array(groups, np.uint64), 0.5, 0).any()
    assert not held_out(np.arange(9, dtype=np.uint64), 0.0, 0).any()


def test_another_seed_holds_out_other_rows():
    groups = np.arange(1000, dtype=np.uint64)
    assert held_out(groups, 0.1, 0).tolist() != held_out(groups, 0.1, 1).tolist()


def test_a_conversations_digest_depends_on_its_rows_in_order():
    digests = np.array([5, 6, 6, 5, 5, 6], np.uint64)
    conversation = np.array([0, 0, 1, 1, 3, 3])
    groups = combined(digests, conversation, 4)
    assert groups[0] == groups[3] != groups[1] and groups[2] == 0
