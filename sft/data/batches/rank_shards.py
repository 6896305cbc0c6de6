"""The batches of one of several processes: a step has the rows that it has in one process, each on one of them.

A library would fill the last batches of an epoch up with rows from its start, so that rows were trained on twice, and
an epoch of two processes were another one than that of one. Here what is left is dealt out, and a process that gets
nothing takes a stand-in: two tokens with no label, whose loss is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sft.data.documents import IGNORE, Rows

STAND_IN = -1  # its number of a row


class Shares:
    """A batch sampler: the parts of one process.

    Args:
        batch_sampler: gives batches of all processes together, or with `whole` a batch for one of them at a time.
        rank: which part.
        count: of how many.
        rows: in the data; their number is the stand-in's index.
        whole: batches are not split, consecutive ones go to each process in turn.
        order: rank 0's batches for everyone; the same object where they follow from the seed alone.
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
        for part in self._turns(batches):
            yield list(part) or [self.rows]

    def set_epoch(self, epoch: int) -> None:
        """Tell whatever draws the order."""
        drawing: list[Any] = [self.batch_sampler, getattr(self.batch_sampler, "sampler", None)]
        for each in drawing:
            if hasattr(each, "set_epoch"):
                each.set_epoch(epoch)

    def _turns(self, batches: Sequence[Sequence[int]]) -> Iterable[Sequence[int]]:
        if self.whole:
            for at in range(0, len(batches), self.count):
                turn = batches[at : at + self.count]
                yield turn[self.rank] if self.rank < len(turn) else []
            return
        for batch in batches:
            yield share(batch, self.rank, self.count)


def share(items: Sequence[Any], rank: int, count: int) -> Sequence[Any]:
    """The part of `rank`: consecutive items, of parts that differ by one at most, the first ones the larger."""
    size, more = divmod(len(items), count)
    start = rank * size + min(rank, more)
    return items[start : start + size + (rank < more)]


class WithStandIn:
    """Rows with the stand-in behind them.

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
        row = {"input_ids": tokens, "labels": [IGNORE] * len(tokens), "source": "", "row": STAND_IN}
        return {**row, "lengths": [len(tokens)]}

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        return [self[index] for index in indices]
