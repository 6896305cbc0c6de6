"""The time before the first step by phases: each phase ends with a mark, and the phases add up to the total."""

from __future__ import annotations

import time
from contextvars import ContextVar
from pathlib import Path

PHASES = ("imports", "tokenizer and template", "data", "weights", "adapter", "trainer", "start-up check", "first step")


class Phases:
    """The clock of one run's start.

    Args:
        began: the wall time at which the first phase begins.

    Attributes:
        seconds: of each phase, in order; phases of the same name are added.
    """

    def __init__(self, began: float) -> None:
        self.began = self._last = began
        self.seconds: dict[str, float] = {}
        self.complete = False

    def mark(self, name: str, last: bool = False) -> None:
        """End the phase `name`; with `last` it is the final one. Does nothing after that."""
        if self.complete:
            return
        now = time.time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last, self.complete = now, last

    def line(self) -> str:
        """ "first step after 5.1 s: imports 3.2, data 0.4, ..."."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        return f"first step after {self._last - self.began:.1f} s: {parts}"

    def figures(self) -> dict[str, float]:
        """Seconds by phase, for metrics.json."""
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}


_now: ContextVar[Phases | None] = ContextVar("phases", default=None)
_counted = False  # whether a run of this process was already counted from the process's start


def begin() -> Phases:
    """Start the clock of a run: for the process's first run at the start of the process, for a later one now."""
    global _counted
    phases = Phases(time.time() if _counted else process_start())
    _counted = True
    _now.set(phases)
    return phases


def mark(name: str) -> None:
    """End the phase `name` of the current run, if there is one."""
    phases = _now.get()
    if phases is not None:
        phases.mark(name)


def current() -> Phases | None:
    """The clock of the current run."""
    return _now.get()


def process_start() -> float:
    """The wall time at which this process started; the current time where that is unknown."""
    try:
        import os

        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        return booted + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return time.time()
