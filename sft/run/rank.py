"""Which process of a distributed run this is, as torchrun tells it through the environment."""

from __future__ import annotations

import os


def rank() -> int:
    """The global rank of this process; 0 outside torchrun."""
    return int(os.environ.get("RANK", "0") or 0)


def world_size() -> int:
    """The number of processes that train together; 1 outside torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def is_main() -> bool:
    """Whether this process is the one that writes the run directory."""
    return rank() == 0
