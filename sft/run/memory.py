"""How much memory a run takes: of the accelerator where there is one, of the process otherwise. All in bytes."""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path
from typing import Any


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
    """What metrics.json calls peak_memory_bytes: the accelerator's peak, or the process's where there is none."""
    return device_peak_bytes() or process_peak_bytes()


def reset_peak() -> None:
    """Begin a new measurement: at the start of a job, before its model is loaded, so that each has its own peak."""
    cuda = _cuda()
    if cuda:
        cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: sets VmHWM back to VmRSS


@functools.cache
def total_bytes() -> int:
    """The memory of the machine, or what the container may use of it if that is less; 0 where it cannot be told."""
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
    """torch.cuda where it is in use; torch is not imported for this alone."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None
