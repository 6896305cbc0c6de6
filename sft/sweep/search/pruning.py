"""Pruning: how a running job reports its evaluations to the search, and asks whether to stop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Protocol


class Reporter(Protocol):
    """A running job's connection to its search."""

    def report(self, step: int, value: float) -> None:
        """Report the evaluation after a step."""

    def should_prune(self) -> bool:
        """Whether the search prunes this job."""


_current: ContextVar[Reporter | None] = ContextVar("sft_pruning", default=None)


def current() -> Reporter | None:
    """The reporter of the current job; None without pruning."""
    return _current.get()


@contextlib.contextmanager
def reporting(reporter: Reporter | None) -> Iterator[None]:
    """Within the block, jobs of this process use this reporter."""
    token = _current.set(reporter)
    try:
        yield
    finally:
        _current.reset(token)


class TrialReporter:
    """Reports one job of an Optuna trial, through the study's storage: the job may run in another process.

    For a trial with several seeds the first seed's evaluations decide; the other seeds' jobs stop when it is pruned.

    Args:
        trial: the trial.
        decides: whether the pruner judges this job.
    """

    def __init__(self, trial: Any, decides: bool) -> None:
        self.trial, self.decides = trial, decides
        self.step = 0

    def report(self, step: int, value: float) -> None:
        """Store an evaluation. A job that resumed from a checkpoint may report a step again; the first value is
        kept."""
        self.step = step
        if self.decides and step not in self._stored().intermediate_values:
            self.trial.report(value, step)

    def should_prune(self) -> bool:
        """Ask the pruner, and store its decision."""
        if not self.decides:
            return PRUNED_AT in self._stored().user_attrs
        if not self.trial.should_prune():
            return False
        self.trial.set_user_attr(PRUNED_AT, self.step)
        return True

    def _stored(self) -> Any:
        return self.trial.study._storage.get_trial(self.trial._trial_id)


class Rungs:
    """Successive halving of jobs that train together (Jamieson and Talwalkar 2016): all reach a rung before any is judged.

    The first rung is the first evaluation, each later one at `reduction_factor` times the steps of the one before. Of
    those that reach a rung one in so many goes on. Optuna's own pruners judge a job by those that came before it alone.

    Args:
        reduction_factor: one in so many goes on.
        direction: minimize or maximize.
    """

    def __init__(self, reduction_factor: int, direction: str) -> None:
        self.reduction_factor, self.sign = reduction_factor, -1 if direction == "maximize" else 1
        self.first: int | None = None
        self.values: dict[int, dict[int, float]] = {}  # of each rung, by job

    def report(self, job: int, step: int, value: float) -> None:
        """A job's evaluation after a step."""
        self.first = step if self.first is None else min(self.first, step)
        for rung in range(self._reached(step) + 1):
            self.values.setdefault(rung, {}).setdefault(job, self.sign * value)

    def is_out(self, job: int, step: int) -> bool:
        """Whether a job that is at this step is given up; called when all have reported that come so far."""
        rung = self._reached(step)
        values = self.values.get(rung, {})
        keeps = max(1, len(values) // self.reduction_factor)
        order = sorted(values, key=lambda each: (values[each], each))
        return job in values and order.index(job) >= keeps

    def _reached(self, step: int) -> int:
        """The number of the last rung at this step or before it."""
        rung, first = 0, self.first or step
        while first * self.reduction_factor ** (rung + 1) <= step:
            rung += 1
        return rung


class RungReporter:
    """Reports a job of an Optuna trial, and judges it with those that train with it.

    Args:
        inner: stores what is reported.
        rungs: of all jobs that train together.
        job: this one's number.
    """

    def __init__(self, inner: TrialReporter, rungs: Rungs, job: int) -> None:
        self.inner, self.rungs, self.job = inner, rungs, job

    def report(self, step: int, value: float) -> None:
        """Store an evaluation."""
        self.inner.report(step, value)
        if self.inner.decides:
            self.rungs.report(self.job, step, value)

    def should_prune(self) -> bool:
        """Whether the job is given up, by its rung."""
        if not self.inner.decides:
            return self.inner.should_prune()
        out = self.rungs.is_out(self.job, self.inner.step)
        if out:
            self.inner.trial.set_user_attr(PRUNED_AT, self.inner.step)
        return out


PRUNED_AT = "pruned_at"
