"""Splitting off evaluation rows before anything is resampled: by the rows' content and the seed alone."""

from __future__ import annotations

import numpy as np


def held_out(groups: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Select about `fraction` of a source's conversations for evaluation; equal ones stay on one side.

    Conversations are taken in the order of a hash of their content and the seed. So the choice does not depend on
    their order in the file, and adding a conversation moves few others to the other side.

    Args:
        groups: a digest of each conversation's content, uint64 [conversations].
        fraction: share to hold out, in [0, 1).
        seed: another seed, another choice.

    Returns:
        bool [conversations]. As many as whole groups of equal conversations allow without exceeding the fraction, at
        least one group; all false where that would leave nothing to train on.
    """
    held = np.zeros(len(groups), dtype=bool)
    if not fraction or len(groups) < 2:
        return held
    contents, member_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(contents) < 2:
        return held
    order = np.argsort(_scrambled(contents, seed), kind="stable")
    room = max(1, min(round(fraction * len(groups)), len(groups) - 1))
    chosen = np.zeros(len(contents), dtype=bool)
    if sizes.max() == 1:
        chosen[order[:room]] = True
    else:
        for index in order:
            if sizes[index] <= room:
                chosen[index] = True
                room -= int(sizes[index])
    if not chosen.any():  # all groups are larger than the share: take the smallest
        chosen[order[np.argmin(sizes[order])]] = True
    return chosen[member_of]


def combined(digests: np.ndarray, conversation: np.ndarray, count: int) -> np.ndarray:
    """One digest a conversation from those of its documents, uint64 [count]; order counts, and none gives 0."""
    total = np.zeros(count, dtype=np.uint64)
    first = np.searchsorted(conversation, conversation)
    place = (np.arange(len(conversation)) - first + 1).astype(np.uint64)
    np.add.at(total, conversation, _mixed(digests + place * np.uint64(0x9E3779B97F4A7C15)))
    return total


def _scrambled(digests: np.ndarray, seed: int) -> np.ndarray:
    offset = np.random.default_rng(seed).integers(0, 2**64, dtype=np.uint64, endpoint=False)
    return _mixed(digests ^ offset)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Spread 64-bit values so that every bit of the input moves every bit of the output (splitmix64's finalizer)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
