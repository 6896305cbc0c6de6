"""Packing: whole documents concatenated into packs of at most `capacity` tokens, by best-fit decreasing.

A document goes into the fullest pack that still has room for it, longest documents first (Johnson 1973: at most
11/9 of the fewest packs possible). Documents of one length are interchangeable and so are packs with the same room,
so both are handled as groups: the work grows with the number of different lengths, not with the number of documents.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packs:
    """Which documents are in which pack.

    Args:
        order: documents' indices, int64 [documents], pack after pack.
        offsets: int64 [packs + 1]; pack p holds the documents `order[offsets[p]:offsets[p + 1]]`.
    """

    order: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self):
        for first, last in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.order[first:last]


def pack(lengths: np.ndarray, capacity: int, seed: int | None = None) -> Packs:
    """Assign every document to exactly one pack.

    Args:
        lengths: tokens of each document, [documents], each between 1 and `capacity`.
        capacity: tokens a pack may hold.
        seed: order of the packs; None puts the pack of the earliest document first.

    Raises:
        ValueError: a document is empty or longer than a pack.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if not len(lengths):
        return Packs(np.empty(0, np.int64), np.zeros(1, np.int64))
    if lengths.min() < 1 or lengths.max() > capacity:
        raise ValueError(f"a document is between 1 and {capacity} tokens long, not {lengths.min()} or {lengths.max()}")
    descending = np.argsort(-lengths, kind="stable")
    pack_of = np.empty(len(lengths), np.int64)
    pack_of[descending] = _best_fit(lengths[descending], capacity)
    return _ordered(pack_of, descending, seed)


def _best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The pack of each document; `lengths` descends."""
    pack_of = np.empty(len(lengths), np.int64)
    changes = np.flatnonzero(np.diff(lengths)) + 1
    begins, ends = np.concatenate([[0], changes]).tolist(), np.concatenate([changes, [len(lengths)]]).tolist()
    open_packs: dict[int, list[int]] = {}  # room left -> packs with that room
    rooms: list[int] = []  # the keys of open_packs, ascending
    opened = 0
    for begin, end in zip(begins, ends, strict=True):
        length = int(lengths[begin])
        while begin < end:
            nearest = bisect_left(rooms, length)
            room = rooms[nearest] if nearest < len(rooms) else capacity
            each = room // length  # the chosen pack remains the fullest that fits until it is full
            wanted = -(-(end - begin) // each)
            if nearest < len(rooms):
                waiting = open_packs[room]
                chosen = waiting[-wanted:]
                del waiting[-wanted:]
                if not waiting:
                    del open_packs[room], rooms[nearest]
            else:
                chosen = list(range(opened, opened + wanted))
                opened += wanted
            placed = min(end - begin, len(chosen) * each)
            pack_of[begin : begin + placed] = np.repeat(chosen, each)[:placed]
            begin += placed
            in_last = placed - (len(chosen) - 1) * each
            _reopen(open_packs, rooms, room - each * length, chosen[:-1])
            _reopen(open_packs, rooms, room - in_last * length, chosen[-1:])
    return pack_of


def _reopen(open_packs: dict[int, list[int]], rooms: list[int], room: int, packs: list[int]) -> None:
    if not room or not packs:
        return
    if room not in open_packs:
        open_packs[room] = []
        insort(rooms, room)
    open_packs[room].extend(packs)


def _ordered(pack_of: np.ndarray, descending: np.ndarray, seed: int | None) -> Packs:
    """Packs in the seed's order, or by their earliest document; documents within a pack longest first."""
    count = int(pack_of.max()) + 1
    if seed is None:
        first = np.full(count, len(pack_of), np.int64)
        np.minimum.at(first, pack_of, np.arange(len(pack_of)))
        sequence = np.argsort(first, kind="stable")
    else:
        sequence = np.random.default_rng(seed).permutation(count)
    place = np.empty(count, np.int64)
    place[sequence] = np.arange(count)
    places = place[pack_of[descending]]
    order = descending[np.argsort(places, kind="stable")]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(places, minlength=count))])
    return Packs(order, offsets.astype(np.int64))
