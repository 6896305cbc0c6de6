"""The accelerators and threads of worker processes on one machine."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from sft.system.processes import usable_cores

VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def assign_devices(devices: Sequence[str], slot: int, each: int = 1) -> list[str]:
    """The devices of one worker: exclusive if there are enough, otherwise shared round-robin.

    Args:
        devices: all available devices.
        slot: the worker's number, from 0.
        each: devices per worker. A run trains on all that are visible.
    """
    if not devices:
        return []
    first = slot * each
    return [devices[(first + offset) % len(devices)] for offset in range(min(each, len(devices)))]


def visible_devices(environment: Mapping[str, str] | None = None) -> list[str]:
    """The accelerators of this process, by their names in CUDA_VISIBLE_DEVICES; [] on a CPU."""
    given = (os.environ if environment is None else environment).get(VISIBLE)
    if given is not None:
        names = [name.strip() for name in given.split(",") if name.strip()]
        return [] if "-1" in names else names
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def threads_each(workers: int, environment: Mapping[str, str] | None = None) -> int:
    """Threads per worker: the user's OMP_NUM_THREADS, else an equal share of the cores."""
    environment = os.environ if environment is None else environment
    given = environment.get(THREADS[0], "")
    return int(given) if given.isdigit() and int(given) > 0 else max(1, usable_cores() // workers)


def use_devices(devices: Sequence[str], threads: int, environment: MutableMapping[str, str] | None = None) -> None:
    """Restrict this process to these devices and threads; must be called before torch is used."""
    import sys

    environment = os.environ if environment is None else environment
    environment[VISIBLE] = ",".join(devices)
    for name in THREADS:
        environment[name] = str(threads)
    if "torch" in sys.modules:  # torch read the variables when it was imported
        sys.modules["torch"].set_num_threads(threads)


def claim_slot(directory: Path, slots: int, patience: float = 30.0) -> int:
    """Claim the first free slot until this process ends: a worker that replaces another gets its slot.

    Args:
        directory: of the pool; one lock file per slot.
        patience: how long to wait for the process that is being replaced to end, in seconds.

    Raises:
        RuntimeError: all are taken.
    """
    until = time.monotonic() + patience
    while (slot := _free_slot(directory, slots)) is None:
        if time.monotonic() > until:
            raise RuntimeError(f"all {slots} slots in {directory} are taken")
        time.sleep(0.1)
    return slot


def _free_slot(directory: Path, slots: int) -> int | None:
    for slot in range(slots):
        lock = FileLock(directory / f"slot-{slot}", mode=0o600)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        _claimed.append(lock)
        return slot
    return None


_claimed: list[FileLock] = []  # held as long as the process lives
