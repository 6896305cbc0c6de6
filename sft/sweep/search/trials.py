"""A search's trials: points that a study has drawn, each with its place.

A trial that was cut off keeps its place and its point, so that its jobs go on in their directories; one that failed is
tried again as a new trial of the same place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.sweep.search.space import Space
from sft.sweep.search.study import PLACE, SearchOptions, import_optuna, make_sampler

REDRAWS = 20  # of a point that was run already


class Trials:
    """The trials of a study.

    Args:
        study: Optuna's.
        space: what is searched over.
        options: the sweeper's keys.
    """

    def __init__(self, study: Any, space: Space, options: SearchOptions) -> None:
        self.study, self.space, self.options = study, space, options
        self.optuna = import_optuna()

    def by_place(self) -> dict[int, Any]:
        """The last trial of each place."""
        return {each.user_attrs[PLACE]: each for each in self.study.get_trials() if PLACE in each.user_attrs}

    def stored(self, trial: Any) -> Any:
        """A trial as the study has it, with what its jobs told meanwhile."""
        return self.study._storage.get_trial(trial._trial_id)

    def to_run(self, total: int, points: Sequence[Mapping[str, Any]] | None, retry_failed: bool) -> Iterator[Any]:
        """Interrupted trials, then failed ones, then new ones.

        Args:
            total: how many places there are.
            points: the point of each place, where they are laid down beforehand; None draws them.
            retry_failed: whether points that failed in an earlier session are retried.
        """
        states = self.optuna.trial.TrialState
        known = self.by_place()
        self._clear_undrawn()
        for place in sorted(known):
            if known[place].state == states.RUNNING:
                yield self.optuna.Trial(self.study, known[place]._trial_id)
        for place, last in sorted(known.items()):
            if last.state == states.FAIL and retry_failed:
                yield self._draw(place, last.params)
        for place in range(total):
            if place not in known:
                yield self._draw(place, points[place] if points is not None else None)

    def _clear_undrawn(self) -> None:
        """Remove what a session left that was killed while sampling a point: it has no place and no jobs."""
        states = self.optuna.trial.TrialState
        while self.study.get_trials(deepcopy=False, states=(states.WAITING,)):
            self.study.ask()
        for each in self.study.get_trials(states=(states.RUNNING,)):
            if PLACE not in each.user_attrs:
                self.study.tell(each.number, state=states.FAIL)

    def _draw(self, place: int, point: Mapping[str, Any] | None) -> Any:
        """Sample the point of a place. Runs are deterministic, so a point that was already run is sampled again."""
        states = self.optuna.trial.TrialState
        known = [self.space.texts(trial.params) for trial in self.by_place().values()]
        if point is not None:
            self.study.enqueue_trial(dict(point))
        for attempt in range(REDRAWS + 1):
            self.study.sampler = make_sampler(self.options, place, attempt)
            trial = self.study.ask(self.space.distributions)
            if point is not None or attempt == REDRAWS or self.space.texts(trial.params) not in known:
                break
            self.study.tell(trial, state=states.FAIL)
        trial.set_user_attr(PLACE, place)
        return trial


def place_of(trial: Any) -> int:
    """A trial's place."""
    return trial.user_attrs[PLACE]


def consecutive(batch: Sequence[Any]) -> list[list[Any]]:
    """Trials in groups whose places follow on one another."""
    groups: list[list[Any]] = []
    for trial in sorted(batch, key=place_of):
        if groups and place_of(groups[-1][-1]) + 1 == place_of(trial):
            groups[-1].append(trial)
        else:
            groups.append([trial])
    return groups


def refuse_other(study: Any, space: Space, options: SearchOptions, directory: Path) -> None:
    """Refuse a study of another space or list of seeds, with which its jobs' numbers and points would not match.

    Raises:
        UserError: this one is of others.
    """
    fixed = [text for key, text in space.arguments if key is None]
    spaces = {key: _plain(distribution) for key, distribution in space.distributions.items()}
    now = {"fixed": sorted(fixed), "space": spaces, "seeds": list(options.seeds or [])}
    before = study.user_attrs.get("search")
    if before is None:
        study.set_user_attr("search", now)
    elif before != now:
        different = ", ".join(f"{key}: {before.get(key)}, now {now[key]}" for key in now if before.get(key) != now[key])
        raise UserError(
            f"holds another search ({different})",
            where=str(directory),
            remedy="resume it with the same overrides and seeds, or choose another hydra.sweep.dir",
        )


def _plain(distribution: Any) -> dict[str, Any]:
    """A distribution as JSON, as the study stores it."""
    from optuna.distributions import distribution_to_json

    return json.loads(distribution_to_json(distribution))
