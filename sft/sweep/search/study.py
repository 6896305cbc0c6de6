"""A search's Optuna study: stored in the sweep's directory, with the same results after a kill as without one.

Optuna does not store a sampler's state, so each point gets its own sampler, seeded by the search's seed and the point's
place: a sample depends only on these and on the earlier trials, not on restarts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.config.errors import UserError, not_installed
from sft.config.source_code.class_attributes import class_attribute
from sft.sweep.search.pruning import TrialReporter

if TYPE_CHECKING:
    import optuna

STORAGE = "optuna.db"
STUDY = "search"
PLACE = "place"
SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "halving", "hyperband")


@dataclass(frozen=True)
class SearchOptions:
    """The keys of `hydra.sweeper`.

    Attributes:
        n_trials: points in total, including earlier sessions.
        sampler: tpe, random or grid.
        n_startup_trials: points that TPE samples at random before it uses results.
        seed: of the sampler.
        seeds: each point is run once with each as its `seed`, and scored by the mean; none: once, with the config's.
        n_jobs: points sampled together, for a launcher that runs jobs in parallel.
        pruner: none, median, halving or hyperband.
        pruner_startup_trials: finished points before the median pruner prunes any.
        pruner_warmup_steps: training steps before the median pruner prunes a point.
        reduction_factor: at each rung of halving and hyperband, one in so many continues.
    """

    n_trials: int = 20
    sampler: str = "tpe"
    n_startup_trials: int = 10
    seed: int = 42
    seeds: Sequence[int] | None = None
    n_jobs: int = 1
    pruner: str = "none"
    pruner_startup_trials: int = 4
    pruner_warmup_steps: int = 0
    reduction_factor: int = 3

    def __post_init__(self) -> None:
        _one_of("sampler", self.sampler, SAMPLERS)
        _one_of("pruner", self.pruner, PRUNERS)
        least = {"n_trials": 1, "n_jobs": 1, "n_startup_trials": 0, "pruner_startup_trials": 0, "reduction_factor": 2}
        for name, low in least.items():
            if not isinstance(getattr(self, name), int) or getattr(self, name) < low:
                raise UserError(f"{getattr(self, name)!r} is not a whole number from {low} on", where=_key(name))
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) != len(self.seeds)):
            raise UserError(
                "seeds are different whole numbers", where=_key("seeds"), remedy="'hydra.sweeper.seeds=[1,2,3]'"
            )

    @property
    def job_seeds(self) -> Sequence[int | None]:
        """The seed of each of a point's jobs; None is the config's own."""
        return self.seeds or [None]

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> SearchOptions:
        """From the `hydra.sweeper` node."""
        return cls(**{str(key): value for key, value in node.items() if key != "_target_"})


def open_study(directory: Path, options: SearchOptions, direction: str) -> optuna.Study:
    """The study of a sweep's directory, created if there is none.

    Raises:
        UserError: the study there was begun with the other direction.
    """
    optuna = import_optuna()
    directory.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=_storage(directory),
        study_name=STUDY,
        pruner=make_pruner(options),
        direction=direction,
        load_if_exists=True,
    )
    if study.direction.name.lower() != direction:
        raise UserError(
            f"the search there was started to {study.direction.name.lower()} its objective, not to {direction} it",
            where=str(directory / STORAGE),
            remedy="another hydra.sweep.dir for a new search",
        )
    return study


def trial_reporter(node: Mapping[str, Any], directory: Path, number: int) -> TrialReporter | None:
    """In a launcher's worker process: the reporter of the job with this number; None without pruning.

    Args:
        node: the `hydra.sweeper` node.
        directory: the sweep's.
    """
    if not class_attribute(node.get("_target_"), "has_study") or node.get("pruner") == "none":
        return None
    optuna, options = import_optuna(), SearchOptions.of(node)
    many = len(options.job_seeds)
    study = optuna.load_study(storage=_storage(directory), study_name=STUDY, pruner=make_pruner(options))
    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    mine = [trial for trial in running if trial.user_attrs.get(PLACE) == number // many]
    return TrialReporter(optuna.Trial(study, mine[-1]._trial_id), number % many == 0) if mine else None


def make_sampler(options: SearchOptions, place: int, attempt: int = 0) -> Any:
    """The sampler for the point of a place; `attempt` counts samples that repeated an existing point."""
    import numpy as np

    samplers = import_optuna().samplers
    seed = int(np.random.SeedSequence([options.seed, place, attempt]).generate_state(1)[0])
    if options.sampler != "tpe":  # a grid's points are fixed beforehand
        return samplers.RandomSampler(seed=seed)
    return samplers.TPESampler(seed=seed, n_startup_trials=options.n_startup_trials, constant_liar=options.n_jobs > 1)


def make_pruner(options: SearchOptions) -> Any:
    """Optuna's pruner of this name."""
    pruners = import_optuna().pruners
    if options.pruner == "median":
        return pruners.MedianPruner(
            n_startup_trials=options.pruner_startup_trials, n_warmup_steps=options.pruner_warmup_steps
        )
    if options.pruner == "halving":
        return pruners.SuccessiveHalvingPruner(reduction_factor=options.reduction_factor)
    if options.pruner == "hyperband":
        return pruners.HyperbandPruner(reduction_factor=options.reduction_factor)
    return pruners.NopPruner()


def import_optuna() -> Any:
    """Optuna, quiet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise not_installed("Optuna", "optuna", "hydra/sweeper=optuna") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _storage(directory: Path) -> Any:
    from sqlalchemy.engine import URL

    optuna = import_optuna()
    url = URL.create("sqlite", database=str((directory / STORAGE).absolute())).render_as_string(hide_password=False)
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})


def _one_of(name: str, value: object, options: Sequence[str]) -> None:
    if value not in options:
        raise UserError(f"there is no {name} {value!r}", where=_key(name), remedy=f"one of {', '.join(options)}")


def _key(name: str) -> str:
    return f"hydra.sweeper.{name}"
