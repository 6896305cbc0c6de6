"""The shard of a batch that each of several processes gets."""

import pytest

from sft.data.batches.rank_shards import PLACEHOLDER_ROW, RankBatchSampler, RowsWithPlaceholder, rank_slice
from sft.data.documents import IGNORE


class Sampler:
    """Batches that are given, and the epochs it was told of."""

    def __init__(self, batches):
        self.batches, self.epochs = batches, []

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


@pytest.mark.parametrize(("size", "count"), [(8, 2), (7, 2), (1, 2), (2, 3), (0, 4), (10, 4)])
def test_shards_cover_the_batch_and_differ_by_at_most_one_row(size, count):
    parts = [rank_slice(range(size), rank, count) for rank in range(count)]
    assert [item for part in parts for item in part] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_rank_without_a_row_gets_the_placeholder():
    parts = [list(RankBatchSampler(Sampler([[0, 1, 2, 3], [4]]), rank, 2, rows=5)) for rank in range(2)]
    assert parts == [[[0, 1], [4]], [[2, 3], [5]]]


def test_whole_batches_are_assigned_round_robin():
    shares = [RankBatchSampler(Sampler([[0], [1, 2], [3]]), rank, 2, rows=4, whole=True) for rank in range(2)]
    assert [list(each) for each in shares] == [[[0], [3]], [[1, 2], [4]]]
    assert [len(each) for each in shares] == [2, 2]


def test_the_epoch_is_forwarded_and_the_order_is_rank_0s():
    sampler = Sampler([[3, 1]])
    shares = RankBatchSampler(sampler, 1, 2, rows=4, order=lambda batches: [[0, 2]])
    shares.set_epoch(3)
    assert sampler.epochs == [3]
    assert list(shares) == [[2]]


def test_the_placeholder_has_no_trained_token():
    rows = [{"input_ids": [7, 8, 9], "labels": [IGNORE, 8, 9], "source": "a", "row": 1, "lengths": [3]}]
    with_placeholder = RowsWithPlaceholder(rows)
    assert len(with_placeholder) == 1
    assert with_placeholder[0] is rows[0]
    assert with_placeholder.__getitems__([1]) == [
        {"input_ids": [7, 8], "labels": [IGNORE, IGNORE], "source": "", "row": PLACEHOLDER_ROW, "lengths": [2]}
    ]
