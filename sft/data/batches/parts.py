"""A padding-free batch, split between documents into parts of about equal compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MAX_IMBALANCE = 1.25  # the largest part may be this many times its even share; beyond it the others would wait too long


def split_documents(batch: Mapping[str, Any], count: int, costs: Sequence[float]) -> list[dict[str, Any]]:
    """Split a batch's documents into parts, each a batch of its own; their shared prefix is in every part.

    Args:
        batch: of `FlatCollator` or `SharedPrefixCollator`, on the CPU.
        count: parts.
        costs: of each segment between boundaries, the shared prefix included, in any unit.

    Returns:
        The parts; only the whole batch where there are fewer documents than parts, or the costs are too uneven.
    """
    starts, seen = (batch[f"cu_seq_lens_{side}"].numpy() for side in "qk")
    shared = int(seen[-1] != starts[-1])  # the first segment is the prefix of all others
    groups = balanced(costs[shared:], count)
    loads = [sum(costs[shared + each] for each in group) + sum(costs[:shared]) for group in groups]
    if not all(groups) or max(loads) * count > MAX_IMBALANCE * sum(loads):
        return [dict(batch)]
    return [_part(batch, starts, seen, [*range(shared), *(shared + each for each in group)]) for group in groups]


def balanced(costs: Sequence[float], count: int) -> list[list[int]]:
    """Indices of the costs in groups of about the same sum: the largest first, each to the smallest group."""
    groups: list[list[int]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        least = loads.index(min(loads))
        groups[least].append(index)
        loads[least] += costs[index]
    return [sorted(group) for group in groups]


def _part(batch: Mapping[str, Any], starts: np.ndarray, seen: np.ndarray, stretches: list[int]) -> dict[str, Any]:
    """The batch of some of the segments between boundaries, in their order."""
    import torch

    tokens = int(starts[-1])
    places = torch.from_numpy(np.concatenate([np.arange(starts[each], starts[each + 1]) for each in stretches]))
    part = {
        key: value[:, places] if isinstance(value, torch.Tensor) and value.shape == (1, tokens) else value
        for key, value in batch.items()
    }
    for side, borders in (("q", starts), ("k", seen)):
        lengths = np.diff(borders)[stretches]
        part[f"cu_seq_lens_{side}"] = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
        part[f"max_length_{side}"] = int(lengths.max())
    return part
