"""What belongs to a process and not to a thread, for jobs that take turns in one: each finds its own as it left it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.state import GradientState
from hydra.core.hydra_config import HydraConfig

from sft.run import log as run_log
from sft.training.memory import RngState

Handlers = dict[str, tuple[list[logging.Handler], int, bool, bool]]


class ProcessState:
    """The global state of this process at one moment: random numbers, logging, warnings, standard streams, Hydra, accelerate.

    Taken by a job when it hands its turn on, and put back when it has the turn again.
    """

    def __init__(self) -> None:
        self.draws = RngState()
        self.streams = sys.stdout, sys.stderr
        self.hydra = HydraConfig.instance().cfg
        self.warnings = list(warnings.filters), warnings.showwarning, getattr(logging, "_warnings_showwarning", None)
        self.gradients = dict(GradientState._shared_state)
        self.logs = list(run_log._open_logs)
        self.handlers = _handlers()

    def restore(self) -> None:
        """Make it the process's again."""
        self.draws.restore()
        sys.stdout, sys.stderr = self.streams
        HydraConfig.instance().cfg = self.hydra
        filters, warnings.showwarning, logging._warnings_showwarning = self.warnings  # type: ignore[attr-defined]
        warnings.filters[:] = filters  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]
        GradientState._shared_state.clear()
        GradientState._shared_state.update(self.gradients)
        run_log._open_logs[:] = self.logs
        _set_handlers(self.handlers)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """For the time of a block torch draws from this state's random numbers, which go on from there."""
        home = RngState()
        self.draws.restore()
        try:
            yield
        finally:
            self.draws = RngState()
            home.restore()


def _loggers() -> dict[str, logging.Logger]:
    known = {name: each for name, each in logging.root.manager.loggerDict.items() if isinstance(each, logging.Logger)}
    return {**known, "": logging.root}


def _handlers() -> Handlers:
    """Of every logger that has something of its own: handlers, level, whether it passes records on, whether it is off."""
    return {
        name: (list(each.handlers), each.level, each.propagate, each.disabled)
        for name, each in _loggers().items()
        if each.handlers or each.level or not each.propagate or each.disabled
    }


def _set_handlers(kept: Handlers) -> None:
    for name, each in _loggers().items():
        handlers, level, propagate, disabled = kept.get(name, ([], 0, True, False))
        if each.handlers != handlers:
            each.handlers[:] = handlers
        if each.level != level:
            each.setLevel(level)
        each.propagate, each.disabled = propagate, disabled
