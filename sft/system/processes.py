"""What the operating system tells of processes: the cores that this one may use, and whether another still runs."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """The cores this process may use: those of its affinity, where the system has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def alive(pid: int) -> bool:
    """Whether a process of this machine still runs; one that has ended and was not waited for (a zombie) does not."""
    import psutil

    try:
        return pid > 0 and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # there is one, of somebody else
        return True
