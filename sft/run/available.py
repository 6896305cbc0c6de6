"""The memory that a run may take: of each GPU, or of this process where there is none. All in bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sft.config.rank import local_world_size
from sft.run.memory import process_bytes

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class Place:
    """Where tensors can lie.

    Attributes:
        name: the GPU's, or "this process".
        device: "cuda" or "cpu".
        free: what a run may take here; of the process what it holds already counts as free.
        total: what there is.
        limit: what sets the limit.
    """

    name: str
    device: str
    free: int
    total: int
    limit: str = ""


def places() -> list[Place]:
    """The GPUs that a run may use, or this process alone; imports torch to ask."""
    import torch

    if not torch.cuda.is_available():
        return [process()]
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        free += torch.cuda.memory_reserved(index)  # what this process's allocator holds
        found.append(Place(f"GPU {index}, {torch.cuda.get_device_name(index)}", "cuda", free, total, "its memory"))
    return found


def process() -> Place:
    """The least of the machine's available memory, the container's limit and the process's own (ulimit).

    Of processes that train together each has its share.
    """
    held = process_bytes()
    rooms = sorted(_rooms(), key=lambda found: found[0])
    if not rooms:
        return Place("this process", "cpu", 0, 0, "unknown")
    room, total, limit = rooms[0]
    return Place("this process", "cpu", max(0, room // local_world_size() + held), total, limit)


def _rooms() -> Iterator[tuple[int, int, str]]:
    """(bytes that the process may still take, in all, what says so)."""
    memory = _fields("/proc/meminfo")
    if "MemAvailable" in memory:
        yield memory["MemAvailable"], memory["MemTotal"], "the machine's memory"
    for limit, used in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            most = int(Path(limit).read_text())
            if most < 1 << 60:
                yield most - _reclaimable(limit, int(Path(used).read_text())), most, "the container's limit"
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        if soft != resource.RLIM_INFINITY:
            yield soft - _fields("/proc/self/status").get("VmSize", 0), soft, "the process's limit (ulimit -v)"


def _reclaimable(limit: str, used: int) -> int:
    """What of a container's usage is no cache of files, which gives way."""
    try:
        lines = (Path(limit).parent / "memory.stat").read_text().splitlines()
        stat = dict(line.split() for line in lines)
    except (OSError, ValueError):
        return used
    return max(0, used - int(stat.get("inactive_file", 0)) - int(stat.get("active_file", 0)))


def _fields(path: str) -> dict[str, int]:
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            if value.split()[1:] == ["kB"]:
                found[name] = int(value.split()[0]) * 1024
    return found
