"""A search: draw points, run their jobs, tell what came of them; go on where an earlier session stopped.

A trial is a point of the space. Its place (0, 1, ...) numbers its jobs: one a seed. A trial that was cut off keeps its
place and its point, so that its jobs go on in their directories; one that failed is tried again as a new trial of the
same place.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.run.directory import RunDirectory
from sft.sweep.search.pruning import PRUNED_AT, TrialReporter, reporting
from sft.sweep.search.space import Space, grid
from sft.sweep.search.study import PLACE, SearchOptions, import_optuna, make_sampler, open_study

RESULTS = "optimization_results.json"
REDRAWS = 20
# Runs jobs of consecutive numbers: (overrides of each, the first one's number) -> objective of each, None for none.
Launch = Callable[[Sequence[Sequence[str]], int], Sequence[float | None]]


@dataclass
class Search:
    """One session of a search.

    Args:
        directory: the sweep's.
        space: what is searched over.
        options: the sweeper's keys.
        launch: runs jobs.
        objective: the figure's name, for the messages.
        direction: minimize or maximize.
        parallel: whether `launch` runs its jobs in other processes, several at a time.
        retry_failed: whether points that failed in an earlier session are tried again.
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
        """Run the trials that are missing. Returns what is written to optimization_results.json.

        Raises:
            UserError: the directory's study is of another search.
        """
        self.optuna = import_optuna()
        points = grid(self.space) if self.options.sampler == "grid" else None
        self.total = min(self.options.n_trials, len(points)) if points is not None else self.options.n_trials
        self.study = open_study(self.directory, self.options, self.direction)
        self._refuse_other()
        batch: list[Any] = []
        for trial in self._trials(points):
            batch.append(trial)
            if len(batch) == self.options.n_jobs:
                self._run(batch)
                batch = []
        self._run(batch)
        return self.write_results()

    def _trials(self, points: list[dict[str, Any]] | None) -> Iterable[Any]:
        """Cut off trials, then failed ones, then new ones."""
        states = self.optuna.trial.TrialState
        known = self._by_place()
        self._clear_undrawn()
        for place in sorted(known):
            if known[place].state == states.RUNNING:
                yield self.optuna.Trial(self.study, known[place]._trial_id)
        for place, last in sorted(known.items()):
            if last.state == states.FAIL and self.retry_failed:
                yield self._ask(place, last.params)
        for place in range(self.total):
            if place not in known:
                yield self._ask(place, points[place] if points is not None else None)

    def _clear_undrawn(self) -> None:
        """What a session left that was killed while it drew a point: it has no place, and no job has run."""
        states = self.optuna.trial.TrialState
        while self.study.get_trials(deepcopy=False, states=(states.WAITING,)):
            self.study.ask()
        for each in self.study.get_trials(states=(states.RUNNING,)):
            if PLACE not in each.user_attrs:
                self.study.tell(each.number, state=states.FAIL)

    def _ask(self, place: int, point: dict[str, Any] | None) -> Any:
        """Draw the point of a place. A run is deterministic, so a point that was run already is drawn anew."""
        states = self.optuna.trial.TrialState
        known = [self.space.texts(trial.params) for trial in self._by_place().values()]
        if point is not None:
            self.study.enqueue_trial(point)
        for attempt in range(REDRAWS + 1):
            self.study.sampler = make_sampler(self.options, place, attempt)
            trial = self.study.ask(self.space.distributions)
            if point is not None or attempt == REDRAWS or self.space.texts(trial.params) not in known:
                break
            self.study.tell(trial, state=states.FAIL)
        trial.set_user_attr(PLACE, place)
        return trial

    def _run(self, batch: list[Any]) -> None:
        """Run a batch's jobs and tell the study of each trial."""
        batch = [trial for trial in batch if not self._given_up(trial)]
        values: dict[tuple[int, int], float | None] = {}
        for group in self._consecutive(batch) if self.parallel else [[trial] for trial in batch]:
            values.update(self._launched(group))
        for trial in batch:
            self._tell(trial, [values.get((_place(trial), index)) for index in range(len(self._seeds))])
        if batch:
            self.write_results()

    def _launched(self, group: list[Any]) -> dict[tuple[int, int], float | None]:
        """{(place, index of the seed): objective} of trials with consecutive places."""
        many = len(self._seeds)
        jobs = [(trial, index) for trial in group for index in range(many)]
        if self.parallel:
            found = self.launch([self._overrides(*job) for job in jobs], _place(group[0]) * many)
            return {(_place(trial), index): value for (trial, index), value in zip(jobs, found, strict=True)}
        values = {}
        for trial, index in jobs:
            if PRUNED_AT in self._stored(trial).user_attrs:
                break
            reporter = TrialReporter(trial, index == 0) if self.options.pruner != "none" else None
            with reporting(reporter):
                found = self.launch([self._overrides(trial, index)], _place(trial) * many + index)
            values[_place(trial), index] = found[0]
        return values

    def _tell(self, trial: Any, values: list[float | None]) -> None:
        """A point is worth the mean over its seeds; one that fails with any of them is not to be recommended."""
        states = self.optuna.trial.TrialState
        pruned = PRUNED_AT in self._stored(trial).user_attrs
        good = [value for value in values if value is not None and math.isfinite(value)]
        trial.set_user_attr("values", values)
        if pruned:
            self.study.tell(trial, state=states.PRUNED)
            told = f"given up at step {self._stored(trial).user_attrs[PRUNED_AT]}"
        elif len(good) < len(values):
            self.study.tell(trial, state=states.FAIL)
            told = "failed" if len(values) == 1 else f"failed with {len(values) - len(good)} of {len(values)} seeds"
        else:
            mean = sum(good) / len(good)
            self.study.tell(trial, mean)
            told = f"{self.objective} {mean:.6g}"
        point = " ".join(f"{key}={text}" for key, text in self.space.texts(trial.params).items())
        print(f"trial {_place(trial)} of {self.total}: {told}  ({point})", file=sys.stderr)

    def _given_up(self, trial: Any) -> bool:
        """A trial that was cut off between the pruner's verdict and the study's hearing of it."""
        if PRUNED_AT not in self._stored(trial).user_attrs:
            return False
        self._tell(trial, [])
        return True

    def write_results(self) -> dict[str, Any]:
        """Write optimization_results.json: the best point, and what every trial came to."""
        states = self.optuna.trial.TrialState
        last = sorted(self._by_place().items())
        done = [(trial.value, place, trial) for place, trial in last if trial.state == states.COMPLETE]
        sign = 1 if self.direction == "minimize" else -1
        best = min(done, key=lambda each: (sign * each[0], each[1]), default=None)
        content = {
            "objective": self.objective,
            "direction": self.direction,
            "best": self._row(best[1], best[2]) if best else None,
            "n_trials": self.total,
            "finished": len(done),
            "pruned": sum(trial.state == states.PRUNED for _, trial in last),
            "failed": sum(trial.state == states.FAIL for _, trial in last),
            "sampler": self.options.sampler,
            "seed": self.options.seed,
            "pruner": self.options.pruner,
            "trials": [self._row(place, trial) for place, trial in last],
        }
        RunDirectory(self.directory).write_json(RESULTS, content)
        return content

    def _row(self, place: int, trial: Any) -> dict[str, Any]:
        status = {"COMPLETE": "finished", "FAIL": "failed", "PRUNED": "pruned"}.get(trial.state.name, "running")
        many, texts = len(self._seeds), self.space.texts(trial.params)
        return {
            "trial": place,
            "jobs": [place * many + index for index in range(many)],
            "status": status,
            "value": trial.value if status == "finished" else None,
            "values": trial.user_attrs.get("values"),
            "params": texts,
            "overrides": " ".join(f"{key}={text}" for key, text in texts.items()),
        }

    def _overrides(self, trial: Any, index: int) -> list[str]:
        seed = self._seeds[index]
        found = self.space.overrides(trial.params)
        return found if seed is None else [*found, f"seed={seed}"]

    @property
    def _seeds(self) -> Sequence[int | None]:
        return self.options.seeds or [None]

    def _stored(self, trial: Any) -> Any:
        return self.study._storage.get_trial(trial._trial_id)

    def _by_place(self) -> dict[int, Any]:
        """The last trial of each place."""
        return {each.user_attrs[PLACE]: each for each in self.study.get_trials() if PLACE in each.user_attrs}

    @staticmethod
    def _consecutive(batch: list[Any]) -> list[list[Any]]:
        groups: list[list[Any]] = []
        for trial in sorted(batch, key=_place):
            if groups and _place(groups[-1][-1]) + 1 == _place(trial):
                groups[-1].append(trial)
            else:
                groups.append([trial])
        return groups

    def _refuse_other(self) -> None:
        """A study is of one space and one list of seeds, or its jobs' numbers and points would mean something else."""
        fixed = [text for key, text in self.space.arguments if key is None]
        spaces = {key: _plain(distribution) for key, distribution in self.space.distributions.items()}
        now = {"fixed": sorted(fixed), "space": spaces, "seeds": list(self.options.seeds or [])}
        before = self.study.user_attrs.get("search")
        if before is None:
            self.study.set_user_attr("search", now)
        elif before != now:
            different = ", ".join(
                f"{key}: {before.get(key)}, now {now[key]}" for key in now if before.get(key) != now[key]
            )
            raise UserError(
                f"holds another search ({different})",
                where=str(self.directory),
                remedy="the same overrides and seeds go on with it; for others choose another hydra.sweep.dir",
            )


def _plain(distribution: Any) -> dict[str, Any]:
    """A distribution as JSON, which is how the study keeps it."""
    import json

    from optuna.distributions import distribution_to_json

    return json.loads(distribution_to_json(distribution))


def _place(trial: Any) -> int:
    return trial.user_attrs[PLACE]
