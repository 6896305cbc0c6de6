"""Giving up hopeless jobs: where a running job tells the search its evaluations, and asks whether to go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Protocol


class Reporter(Protocol):
    """What a running job knows of the search that it is a part of."""

    def report(self, step: int, value: float) -> None:
        """Tell what the evaluation after a step gave."""

    def should_prune(self) -> bool:
        """Whether the search gives this job up."""


_current: ContextVar[Reporter | None] = ContextVar("sft_pruning", default=None)


def current() -> Reporter | None:
    """The search's reporter for the job that runs now; None where nothing is pruned."""
    return _current.get()


@contextlib.contextmanager
def reporting(reporter: Reporter | None) -> Iterator[None]:
    """For the time of the block, jobs of this process report here."""
    token = _current.set(reporter)
    try:
        yield
    finally:
        _current.reset(token)


class TrialReporter:
    """Reports one job of an Optuna trial, through the study's storage: the job may run in another process.

    Of a trial with several seeds the first seed's evaluations decide; the other seeds' jobs stop when it was given up.

    Args:
        trial: the trial.
        decides: whether this job is the one that the pruner judges.
    """

    def __init__(self, trial: Any, decides: bool) -> None:
        self.trial, self.decides = trial, decides
        self.step = 0

    def report(self, step: int, value: float) -> None:
        """Store an evaluation. A job that goes on from a checkpoint may come by a step again; the first one stays."""
        self.step = step
        if self.decides and step not in self._stored().intermediate_values:
            self.trial.report(value, step)

    def should_prune(self) -> bool:
        """Ask the pruner, and store its verdict."""
        if not self.decides:
            return PRUNED_AT in self._stored().user_attrs
        if not self.trial.should_prune():
            return False
        self.trial.set_user_attr(PRUNED_AT, self.step)
        return True

    def _stored(self) -> Any:
        return self.trial.study._storage.get_trial(self.trial._trial_id)


PRUNED_AT = "pruned_at"
