"""The rank and world size of this process, from torchrun's environment variables."""

from __future__ import annotations

import os


def rank() -> int:
    """The global rank of this process; 0 outside torchrun."""
    return _number("RANK", 0)


def world_size() -> int:
    """The number of processes that train together; 1 outside torchrun."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """The rank among the processes of this machine; 0 outside torchrun."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """The number of processes of the run on this machine; 1 outside torchrun."""
    return _number("LOCAL_WORLD_SIZE", 1)


def is_main_process() -> bool:
    """Whether this process is the one that writes the run directory."""
    return rank() == 0


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name, "") or default)
