"""The batches of one rank: a step has the same rows as in a single process, each on exactly one rank.

accelerate would fill the last batches of an epoch with rows from its start, so that rows would be trained on twice, and
an epoch of two processes would differ from that of one. Here the remaining rows are split as they are, and a rank
without rows gets a placeholder: two tokens without labels, whose loss is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sft.data.documents import IGNORE, Rows

PLACEHOLDER_ROW = -1  # the row number of the placeholder


class RankBatchSampler:
    """A batch sampler: one rank's part of each batch.

    Args:
        batch_sampler: gives batches for all ranks together, or with `whole` one batch per rank.
        rank: of this process.
        count: the number of ranks.
        rows: in the data; their number is the placeholder's index.
        whole: batches are not split; consecutive ones go to the ranks in turn.
        order: broadcasts rank 0's batches; the identity where they follow from the seed alone.
    """

    def __init__(
        self,
        batch_sampler: Any,
        rank: int,
        count: int,
        rows: int,
        *,
        whole: bool = False,
        order: Callable[[list[Any]], list[Any]] = lambda batches: batches,
    ) -> None:
        self.batch_sampler, self.rank, self.count, self.rows = batch_sampler, rank, count, rows
        self.whole, self.order = whole, order

    def __len__(self) -> int:
        """Batches of an epoch, the same number on every rank."""
        return -(-len(self.batch_sampler) // self.count) if self.whole else len(self.batch_sampler)

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.order(list(self.batch_sampler))
        for part in self._batches_of_rank(batches):
            yield list(part) or [self.rows]

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to whatever draws the order."""
        drawing: list[Any] = [self.batch_sampler, getattr(self.batch_sampler, "sampler", None)]
        for each in drawing:
            if hasattr(each, "set_epoch"):
                each.set_epoch(epoch)

    def _batches_of_rank(self, batches: Sequence[Sequence[int]]) -> Iterable[Sequence[int]]:
        if self.whole:
            for at in range(0, len(batches), self.count):
                turn = batches[at : at + self.count]
                yield turn[self.rank] if self.rank < len(turn) else []
            return
        for batch in batches:
            yield rank_slice(batch, self.rank, self.count)


def rank_slice(items: Sequence[Any], rank: int, count: int) -> Sequence[Any]:
    """The consecutive items of `rank`: the parts differ by one item at most, the first ones are the larger."""
    size, more = divmod(len(items), count)
    start = rank * size + min(rank, more)
    return items[start : start + size + (rank < more)]


class RowsWithPlaceholder:
    """Rows followed by the placeholder.

    Args:
        rows: the training rows.
    """

    def __init__(self, rows: Rows) -> None:
        self.data = rows

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if index < len(self.data):
            return self.data[index]
        tokens = self.data[0]["input_ids"][:2]
        row = {"input_ids": tokens, "labels": [IGNORE] * len(tokens), "source": "", "row": PLACEHOLDER_ROW}
        return {**row, "lengths": [len(tokens)]}

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        return [self[index] for index in indices]
