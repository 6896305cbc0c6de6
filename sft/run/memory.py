"""Memory in bytes: the available and used memory of each GPU, or of this process where there is none."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.config.rank import local_world_size


def process_bytes() -> int:
    """The memory this process holds now (resident set)."""
    return _status("VmRSS")


def process_peak_bytes() -> int:
    """The most memory this process has held since it began or since :func:`reset_peak`."""
    return _status("VmHWM")


def device_bytes() -> int:
    """The memory that tensors hold on this process's accelerator now; 0 without one."""
    cuda = _cuda()
    return int(cuda.memory_allocated()) if cuda else 0


def device_peak_bytes() -> int:
    """The most memory that tensors have held on this process's accelerator since :func:`reset_peak`; 0 without one."""
    cuda = _cuda()
    return int(cuda.max_memory_allocated()) if cuda else 0


def device_total_bytes() -> int:
    """The memory of this process's accelerator; 0 without one."""
    cuda = _cuda()
    return int(cuda.get_device_properties(cuda.current_device()).total_memory) if cuda else 0


def peak_bytes() -> int:
    """peak_memory_bytes of metrics.json: the accelerator's peak, or the process's where there is none."""
    return device_peak_bytes() or process_peak_bytes()


def reset_peak() -> None:
    """Reset the peak: at the start of a job, before its model is loaded, so that each job has its own."""
    cuda = _cuda()
    if cuda:
        cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: sets VmHWM back to VmRSS


@functools.cache
def total_bytes() -> int:
    """The memory of the machine, or the container's limit if that is less; 0 where unknown."""
    found = []
    try:
        line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
        found.append(int(line.split()[1]) * 1024)
    except (OSError, StopIteration, ValueError):
        pass
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return min(found, default=0)


def _status(field: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
    except (OSError, StopIteration, ValueError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _cuda() -> Any:
    """torch.cuda if it is in use; torch is not imported for this."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of a device.

    Attributes:
        name: the GPU's, or "this process".
        device: "cuda" or "cpu".
        free: available to a run; for the process, memory that it already holds counts as free.
        total: in all.
        limit: what sets the limit.
    """

    name: str
    device: str
    free: int
    total: int
    limit: str = ""


def device_memories() -> list[DeviceMemory]:
    """The GPUs that a run may use, or only this process; imports torch to find out."""
    import torch

    if not torch.cuda.is_available():
        return [process()]
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        free += torch.cuda.memory_reserved(index)  # held by this process's allocator
        found.append(
            DeviceMemory(f"GPU {index}, {torch.cuda.get_device_name(index)}", "cuda", free, total, "its memory")
        )
    return found


def process() -> DeviceMemory:
    """The minimum of the machine's available memory, the container's limit and the process's own (ulimit).

    Divided by the number of processes in a distributed run.
    """
    held = process_bytes()
    rooms = sorted(_process_limits(), key=lambda found: found[0])
    if not rooms:
        return DeviceMemory("this process", "cpu", 0, 0, "unknown")
    room, total, limit = rooms[0]
    return DeviceMemory("this process", "cpu", max(0, room // local_world_size() + held), total, limit)


def _process_limits() -> Iterator[tuple[int, int, str]]:
    """(bytes that the process may still allocate, total bytes, the reason)."""
    memory = _fields("/proc/meminfo")
    if "MemAvailable" in memory:
        yield memory["MemAvailable"], memory["MemTotal"], "the machine's memory"
    for limit, used in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max" is not a number: no limit
            most = int(Path(limit).read_text())
            if most < 1 << 60:
                yield most - _reclaimable(limit, int(Path(used).read_text())), most, "the container's limit"
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        if soft != resource.RLIM_INFINITY:
            yield soft - _fields("/proc/self/status").get("VmSize", 0), soft, "the process's limit (ulimit -v)"


def _reclaimable(limit: str, used: int) -> int:
    """The part of a container's usage that is not file cache; the cache is given back when memory is needed."""
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
