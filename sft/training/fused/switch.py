"""Process-wide state for jobs that take turns in one process: each job gets its own state back."""

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

    Saved by a job when it yields its turn, and restored when it gets the turn again.
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
        """Restore it as the process's state."""
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
        """Within the block torch uses this state's random numbers and advances them."""
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
    """For every configured logger: handlers, level, whether it propagates, whether it is disabled."""
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
