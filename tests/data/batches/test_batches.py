"""Batches by tokens: every row once, within the limit, in an order that depends only on seed and epoch."""

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.config.errors import UserError
from sft.data.batches.by_tokens import TokenBatches

CASES = st.tuples(
    st.lists(st.integers(1, 60), min_size=1, max_size=80),
    st.integers(60, 300),
    st.booleans(),
    st.integers(1, 4),
    st.integers(0, 5),
)


def epoch(batches: TokenBatches, number: int) -> list[list[int]]:
    batches.set_epoch(number)
    return list(batches)


@settings(max_examples=150, deadline=None)
@given(CASES)
def test_every_row_occurs_once_within_the_limit_and_the_fullest_batch_is_first(case):
    lengths, limit, padded, ranks, seed = case
    batches = TokenBatches(np.array(lengths), limit, seed, padded=padded, ranks=ranks)
    for number in range(3):
        found = epoch(batches, number)
        assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
        assert len(found) == len(batches)
        tokens = [
            max(lengths[row] for row in batch) * len(batch) if padded else sum(lengths[row] for row in batch)
            for batch in found
        ]
        assert max(tokens) <= limit
        assert tokens[0] == max(tokens)
        assert tokens == [batches.tokens(batch) for batch in found]
        assert len(found) % ranks == 0 or all(len(batch) == 1 for batch in found)


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_batches_depend_only_on_seed_and_epoch(case):
    lengths, limit, padded, ranks, seed = case
    make = lambda: TokenBatches(np.array(lengths), limit, seed, padded=padded, ranks=ranks)  # noqa: E731
    one, other = make(), make()
    np.random.seed(1)
    want = [epoch(one, number) for number in range(3)]
    np.random.seed(2)
    assert [epoch(other, number) for number in (2, 0, 1)] == [want[2], want[0], want[1]]


def lengths_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).lognormal(4.5, 0.7, count).clip(8, 1000).astype(np.int64)


def test_batches_are_full_and_reshuffled_every_epoch():
    lengths = lengths_of(3000)
    batches = TokenBatches(lengths, 4096, 7)
    fill = lengths.sum() / (len(batches) * 4096)
    assert fill > 0.98
    first, second = epoch(batches, 0), epoch(batches, 1)
    assert first != second
    beside = [{(a, b) for batch in found for a in batch for b in batch if a < b} for found in (first, second)]
    assert len(beside[0] & beside[1]) < 0.1 * len(beside[0])  # rows that meet again
    assert sorted(map(tuple, first)) != sorted(map(tuple, epoch(TokenBatches(lengths, 4096, 8), 0)))


def test_padded_batches_have_rows_of_similar_length():
    lengths = lengths_of(3000)
    batches = TokenBatches(lengths, 4096, 7, padded=True)
    padding = 1 - lengths.sum() / sum(batches.tokens(batch) for batch in batches)
    assert padding < 0.03
    assert epoch(batches, 0) != epoch(batches, 1)


@pytest.mark.parametrize("padded", [False, True])
def test_ranks_get_about_equally_full_batches(padded):
    lengths = lengths_of(2000)
    batches = TokenBatches(lengths, 4096, 3, padded=padded, ranks=4)
    shards = [list(BatchSamplerShard(batches, num_processes=4, process_index=rank)) for rank in range(4)]
    assert len({len(shard) for shard in shards}) == 1
    assert sorted(row for shard in shards for batch in shard for row in batch) == list(range(2000))
    steps = [[batches.tokens(batch) for batch in step] for step in zip(*shards, strict=True)]
    assert np.mean([min(step) / max(step) for step in steps]) > 0.95


def test_a_resumed_epoch_continues_with_the_same_batches():
    batches = TokenBatches(lengths_of(200), 2048, 3)
    whole = epoch(batches, 4)
    assert list(SkipBatchSampler(batches, skip_batches=5)) == whole[5:]


def test_a_row_beyond_the_limit_is_refused():
    with pytest.raises(
        UserError, match="2 of 3 rows have more tokens than a batch may have; the longest has 90"
    ) as caught:
        TokenBatches(np.array([90, 10, 70]), 64, 0)
    assert caught.value.remedy == "trainer.max_tokens_per_batch=90, or dataset.max_length=64"
