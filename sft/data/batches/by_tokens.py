"""Batches of whole rows with a limit of tokens: every row once per epoch, drawn by seed and epoch alone.

Every epoch has the same number of batches, so that a schedule and a resumed run can rely on it: the number follows
from the rows' lengths alone. Padding-free, rows are assigned so that all batches are about equally full (the longest
row first, each to the emptiest batch), then random pairs of rows are swapped wherever both batches stay within the
limit. Padded, rows of similar length are batched together, those of equal length shuffled. The order of the batches is
drawn too, but the fullest comes first: if memory is too small, it runs out in the first step.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np

from sft.config.errors import UserError

WHERE = "trainer.max_tokens_per_batch"
SWAPS = 4  # swaps that are tried per row, padding-free


class TokenBatches:
    """A batch sampler: iterating gives lists of row indices, for the epoch that `set_epoch` named last.

    Args:
        lengths: tokens of each row, int [rows].
        limit: tokens of a batch at most: the sum of its rows' lengths, or with `padded` rows times the longest.
        seed: of the run.
        padded: whether rows are padded to the longest.
        ranks: processes; consecutive batches go to the ranks in turn, so their number is a multiple of it where the
            rows allow, and the batches of one turn are about equally full.

    Raises:
        UserError: a row is longer than the limit.
    """

    def __init__(self, lengths: np.ndarray, limit: int, seed: int, *, padded: bool = False, ranks: int = 1) -> None:
        self.lengths, self.limit, self.seed = np.asarray(lengths, np.int64), int(limit), int(seed)
        self.padded, self.ranks, self.epoch = padded, max(1, int(ranks)), 0
        longest = int(self.lengths.max(initial=0))
        if longest > self.limit:
            count = int((self.lengths > self.limit).sum())
            raise UserError(
                f"{count} of {len(self.lengths)} rows have more tokens than a batch may have; the longest has {longest}",
                where=f"{WHERE}={limit}",
                remedy=f"{WHERE}={longest}, or dataset.max_length={limit}",
            )
        sizes = self._padded_batch_sizes() if padded else None
        self._sizes = sizes  # padded: rows of each batch, the longest rows first
        self._owner = None if padded else self._assign_rows()  # padding-free: the batch of each row, the longest first
        self._count = len(sizes) if sizes is not None else int(self._owner.max(initial=-1)) + 1  # type: ignore[union-attr]

    def __len__(self) -> int:
        """Batches of an epoch, of all ranks."""
        return self._count

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration draws, from 0."""
        self.epoch = int(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        draw = np.random.default_rng([self.seed, self.epoch])
        by_length = self._by_length(draw)
        if self._sizes is not None:
            batches = np.split(by_length, np.cumsum(self._sizes)[:-1])
        else:
            owner = self._swap_rows(by_length, draw)
            order = np.argsort(owner, kind="stable")
            batches = np.split(by_length[order], np.cumsum(np.bincount(owner, minlength=len(self)))[:-1])
        return (draw.permutation(batches[index]).tolist() for index in self._order(batches, draw))

    def tokens(self, batch: list[int] | np.ndarray) -> int:
        """The tokens of a batch's tensors."""
        lengths = self.lengths[np.asarray(batch, np.int64)]
        return int(lengths.max(initial=0) * len(lengths) if self.padded else lengths.sum())

    def _by_length(self, draw: np.random.Generator) -> np.ndarray:
        """Row indices, the longest first, those of equal length in random order."""
        shuffled = draw.permutation(len(self.lengths))
        return shuffled[np.argsort(-self.lengths[shuffled], kind="stable")]

    def _padded_batch_sizes(self) -> np.ndarray:
        """How many rows each batch has: as many as fit beside its longest."""
        ordered, sizes, at = -np.sort(-self.lengths), [], 0
        while at < len(ordered):
            sizes.append(min(max(1, self.limit // max(1, int(ordered[at]))), len(ordered) - at))
            at += sizes[-1]
        while len(sizes) % self.ranks and max(sizes, default=0) > 1:  # the batch of most rows in two
            index = int(np.argmax(sizes))
            half = sizes[index] // 2
            sizes[index : index + 1] = [sizes[index] - half, half]
        return np.array(sizes, np.int64)

    def _assign_rows(self) -> np.ndarray:
        """The batch of each row, rows in order of length, with the smallest number of batches that works."""
        ordered = -np.sort(-self.lengths)
        count = max(1, -(-int(ordered.sum()) // self.limit))
        while True:
            wanted = min(-(-count // self.ranks) * self.ranks, max(1, len(ordered)))
            owner = _balance(ordered, wanted, self.limit)
            if owner is not None:
                return owner
            count = wanted + max(1, wanted // 200)

    def _swap_rows(self, by_length: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """`_owner` after swapping rows of random pairs of batches wherever both stay within the limit."""
        assert self._owner is not None
        owner, lengths = self._owner.copy(), self.lengths[by_length]
        sums = np.bincount(owner, weights=lengths, minlength=len(self)).astype(np.int64)
        for _ in range(SWAPS * -(-len(lengths) // max(1, len(self)))):
            rows = draw.permutation(len(lengths))
            _, first = np.unique(owner[rows], return_index=True)
            chosen = draw.permutation(rows[first])  # one row of each batch
            one, other = np.array_split(chosen[: len(chosen) // 2 * 2], 2)
            change = lengths[other] - lengths[one]
            fits = (sums[owner[one]] + change <= self.limit) & (sums[owner[other]] - change <= self.limit)
            one, other, change = one[fits], other[fits], change[fits]
            sums[owner[one]] += change
            sums[owner[other]] -= change
            owner[one], owner[other] = owner[other], owner[one].copy()
        return owner

    def _order(self, batches: list[np.ndarray], draw: np.random.Generator) -> np.ndarray:
        """The order of the batches: each turn of the ranks gets similar ones, and the fullest turn comes first."""
        full = np.array([self.tokens(batch) for batch in batches], np.int64)
        by_size = np.argsort(-full, kind="stable")
        turns = [by_size[at : at + self.ranks] for at in range(0, len(by_size), self.ranks)]
        middle = [turns[1 + index] for index in draw.permutation(max(0, len(turns) - 2))] if len(turns) > 2 else []
        # an incomplete last turn stays last
        rest = turns[-1:] if len(turns) > 1 else []
        if len(turns) > 2 and len(turns[-1]) == self.ranks:
            at = int(draw.integers(0, len(middle) + 1))
            middle.insert(at, rest.pop())
        return np.concatenate([*turns[:1], *middle, *rest]) if turns else by_size


def _balance(ordered: np.ndarray, count: int, limit: int) -> np.ndarray | None:
    """Assign each row to the emptiest of `count` batches; None where one would exceed the limit."""
    owner = np.empty(len(ordered), np.int64)
    batches = [(0, index) for index in range(count)]
    for row, length in enumerate(ordered.tolist()):
        tokens, index = batches[0]
        if tokens + length > limit:
            return None
        owner[row] = index
        heapq.heapreplace(batches, (tokens + length, index))
    return owner
