"""Packing is best-fit decreasing, loses nothing and repeats nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.batches.packing import pack

CAPACITY = st.integers(1, 64)


@st.composite
def documents(draw):
    capacity = draw(CAPACITY)
    return draw(st.lists(st.integers(1, capacity), max_size=80)), capacity


def one_at_a_time(lengths: list[int], capacity: int) -> list[int]:
    """The textbook's best-fit decreasing; the tokens in each pack, ascending."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, left in enumerate(room) if left >= length]
        if not fitting:
            room.append(capacity)
            fitting = [len(room) - 1]
        room[min(fitting, key=lambda index: room[index])] -= length
    return sorted(capacity - left for left in room)


@given(documents(), st.one_of(st.none(), st.integers(0, 5)))
def test_every_document_is_in_exactly_one_pack_and_no_pack_overflows(drawn, seed):
    lengths, capacity = drawn
    packs = pack(np.array(lengths, np.int64), capacity, seed)
    assert sorted(packs.order.tolist()) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in members) <= capacity for members in packs)
    assert sum(len(members) for members in packs) == len(lengths)


@given(documents())
def test_packs_equal_those_of_best_fit_decreasing(drawn):
    lengths, capacity = drawn
    packs = pack(np.array(lengths, np.int64), capacity, seed=1)
    assert sorted(sum(lengths[i] for i in members) for members in packs) == one_at_a_time(lengths, capacity)


@given(documents(), st.integers(0, 3))
def test_the_order_depends_only_on_the_seed(drawn, seed):
    lengths, capacity = drawn
    one, two = (pack(np.array(lengths, np.int64), capacity, seed) for _ in range(2))
    assert one.order.tolist() == two.order.tolist() and one.offsets.tolist() == two.offsets.tolist()


def test_another_seed_gives_the_same_packs_in_another_order():
    lengths = np.arange(1, 200) % 60 + 1
    one, two = pack(lengths, 60, seed=1), pack(lengths, 60, seed=2)
    assert [members.tolist() for members in one] != [members.tolist() for members in two]
    assert {tuple(members) for members in one} == {tuple(members) for members in two}


def test_without_a_seed_the_pack_of_the_first_document_comes_first():
    packs = pack(np.array([3, 10, 7, 10]), 10)
    assert [sorted(members.tolist()) for members in packs] == [[0, 2], [1], [3]]


def test_many_documents_are_packed_nearly_full():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.3, 0.8, 50_000).astype(int), 1, 2048)
    packs = pack(lengths, 2048, seed=0)
    assert lengths.sum() / (len(packs) * 2048) > 0.999


@pytest.mark.parametrize("lengths", [[0], [5, 11]])
def test_a_document_larger_than_a_pack_is_an_error(lengths):
    with pytest.raises(ValueError, match="between 1 and 10"):
        pack(np.array(lengths), 10)
