"""A search: sample points, run their jobs, tell the results; resumes an earlier session.

A trial is a point of the space, and its place (0, 1, ...) numbers its jobs: one a seed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.run.directory import RunDirectory
from sft.sweep.search.outcome import RESULTS, outcome
from sft.sweep.search.pruning import PRUNED_AT, TrialReporter, reporting
from sft.sweep.search.space import Space, grid
from sft.sweep.search.study import SearchOptions, import_optuna, open_study
from sft.sweep.search.trials import Trials, consecutive, place_of, refuse_other

# Runs jobs with consecutive numbers: (overrides of each, number of the first) -> objective of each or None.
Launch = Callable[[Sequence[Sequence[str]], int], Sequence[float | None]]


@dataclass
class Search:
    """One session of a search.

    Args:
        directory: the sweep's.
        space: the search space.
        options: the sweeper's keys.
        launch: runs jobs.
        objective: the metric's name, for messages.
        direction: minimize or maximize.
        parallel: whether `launch` runs its jobs in other processes, several at a time.
        retry_failed: whether points that failed in an earlier session are retried.
    """

    directory: Path
    space: Space
    options: SearchOptions
    launch: Launch
    objective: str = "the objective"
    direction: str = "minimize"
    parallel: bool = False
    retry_failed: bool = True

    def run(self) -> dict[str, Any]:
        """Run the missing trials. Returns the content of optimization_results.json.

        Raises:
            UserError: the directory has the study of another search.
        """
        self.optuna = import_optuna()
        points = grid(self.space) if self.options.sampler == "grid" else None
        self.total = min(self.options.n_trials, len(points)) if points is not None else self.options.n_trials
        self.study = open_study(self.directory, self.options, self.direction)
        refuse_other(self.study, self.space, self.options, self.directory)
        self.trials = Trials(self.study, self.space, self.options)
        batch: list[Any] = []
        for trial in self.trials.to_run(self.total, points, self.retry_failed):
            batch.append(trial)
            if len(batch) == self.options.n_jobs:
                self._run(batch)
                batch = []
        self._run(batch)
        return self.write_results()

    def _run(self, batch: list[Any]) -> None:
        """Run a batch's jobs and tell the study the results."""
        batch = [trial for trial in batch if not self._given_up(trial)]
        values: dict[tuple[int, int], float | None] = {}
        for group in consecutive(batch) if self.parallel else [[trial] for trial in batch]:
            values.update(self._launched(group))
        for trial in batch:
            self._tell(trial, [values.get((place_of(trial), index)) for index in range(len(self.options.job_seeds))])
        if batch:
            self.write_results()

    def _launched(self, group: list[Any]) -> dict[tuple[int, int], float | None]:
        """Run trials with consecutive places. Returns {(place, index of the seed): objective}."""
        many = len(self.options.job_seeds)
        jobs = [(trial, index) for trial in group for index in range(many)]
        if self.parallel:
            found = self.launch([self._overrides(*job) for job in jobs], place_of(group[0]) * many)
            return {(place_of(trial), index): value for (trial, index), value in zip(jobs, found, strict=True)}
        values = {}
        for trial, index in jobs:
            if PRUNED_AT in self.trials.stored(trial).user_attrs:
                break
            reporter = TrialReporter(trial, index == 0) if self.options.pruner != "none" else None
            with reporting(reporter):
                found = self.launch([self._overrides(trial, index)], place_of(trial) * many + index)
            values[place_of(trial), index] = found[0]
        return values

    def _tell(self, trial: Any, values: list[float | None]) -> None:
        """The value of a point is the mean over its seeds; a point that fails with any of them counts as failed."""
        states = self.optuna.trial.TrialState
        pruned = PRUNED_AT in self.trials.stored(trial).user_attrs
        good = [value for value in values if value is not None and math.isfinite(value)]
        trial.set_user_attr("values", values)
        if pruned:
            self.study.tell(trial, state=states.PRUNED)
            told = f"pruned at step {self.trials.stored(trial).user_attrs[PRUNED_AT]}"
        elif len(good) < len(values):
            self.study.tell(trial, state=states.FAIL)
            told = "failed" if len(values) == 1 else f"failed with {len(values) - len(good)} of {len(values)} seeds"
        else:
            mean = sum(good) / len(good)
            self.study.tell(trial, mean)
            told = f"{self.objective} {mean:.6g}"
        point = " ".join(f"{key}={text}" for key, text in self.space.texts(trial.params).items())
        print(f"trial {place_of(trial)} of {self.total}: {told}  ({point})", file=sys.stderr)

    def _given_up(self, trial: Any) -> bool:
        """Whether a trial was interrupted after the pruner's decision, before the study was told."""
        if PRUNED_AT not in self.trials.stored(trial).user_attrs:
            return False
        self._tell(trial, [])
        return True

    def write_results(self) -> dict[str, Any]:
        """Write optimization_results.json. Returns its content."""
        content = outcome(self.trials, self.total, self.objective, self.direction)
        RunDirectory(self.directory).write_json(RESULTS, content)
        return content

    def _overrides(self, trial: Any, index: int) -> list[str]:
        seed = self.options.job_seeds[index]
        found = self.space.overrides(trial.params)
        return found if seed is None else [*found, f"seed={seed}"]
