"""Bytes of live tensors, and their peak, between marks: the allocator's view of a step.

Works on any device, and on the meta device needs no memory. A storage counts from the operator that created it until
its last tensor is freed, as in `torch.distributed._tools.mem_tracker`.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

GRAIN = 512  # torch's CUDA allocator rounds allocations up to this many bytes; the CPU's uses 64

APART = 32 << 20  # bytes


@dataclass(frozen=True)
class Region:
    """What happened between two marks, in bytes.

    Attributes:
        name: the mark at its end.
        net: alive at its end, minus what was alive at its start.
        peak: the most alive, minus what was alive at its start; at least 0.
        taken: total allocated, without tensors over 32 MiB, which the C library maps separately.
    """

    name: str
    net: int
    peak: int
    taken: int = 0


class Tracker(TorchDispatchMode):
    """Tracks every storage created by operators while it is active; earlier ones do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.regions: list[Region] = []
        self.alive = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        self._start = self._most = 0
        self._taken = 0

    def mark(self, name: str) -> None:
        """End the current region and begin the next."""
        self.regions.append(Region(name, self.alive - self._start, self._most - self._start, self._taken))
        self._taken = 0
        self._start = self._most = self.alive

    def ignore(self, *tensors: torch.Tensor) -> None:
        """Do not count these storages: they existed before."""
        for tensor in tensors:
            self._follow(tensor, counted=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self._follow(result)
        elif isinstance(result, (tuple, list)):
            for item in result:
                if isinstance(item, torch.Tensor):
                    self._follow(item)
        return result

    def _follow(self, tensor: torch.Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // GRAIN) * GRAIN if counted else 0
        self._known[key] = weakref.ref(storage, lambda _: self._gone(key, size))
        self.alive += size
        self._taken += size if size < APART else 0
        self._most = max(self._most, self.alive)

    def _gone(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.alive -= size
