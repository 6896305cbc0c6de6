"""Fused training of a sweep's jobs in one process, for hydra/launcher=fused: how jobs are grouped, and how each
starts."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from sft.sweep.launchers.job import directory
from sft.sweep.search.hydra import search_objective
from sft.sweep.search.pruning import RungReporter, Rungs, reporting
from sft.sweep.search.study import trial_reporter
from sft.training.fused.refusal import why_config_alone

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def run_fused(
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    jobs: Sequence[Sequence[str]],
    first: int,
    n_jobs: int | None = None,
    max_tokens: int | None = None,
) -> list[JobReturn]:
    """Run jobs: those that share a base together, the others one after another.

    Args:
        context, task, config: of Hydra, as a launcher's `setup` has them.
        jobs: the overrides of each.
        first: the first job's number.
        n_jobs: how many train at a time; None: as many as memory allows.
        max_tokens: per pass; None for no limit.

    Returns:
        one for each job, in their order.

    Raises:
        PastHydra: jobs were interrupted; running ones have written their checkpoints.
    """
    returned = run_claimed(context, task, config, jobs, first, n_jobs, max_tokens)
    return [returned[first + at] for at in range(len(jobs))]


def run_claimed(
    context: HydraContext,
    task: TaskFunction,
    config: DictConfig,
    jobs: Sequence[Sequence[str]],
    first: int,
    n_jobs: int | None,
    max_tokens: int | None,
    claim: Callable[[int], bool] = lambda number: True,
) -> dict[int, JobReturn]:
    """As `run_fused`, those jobs that `claim` gives to this process, by number; asked as places become free."""
    setup_globals()
    directory(config).mkdir(parents=True, exist_ok=True)
    rungs = _rungs(config)
    composed = {first + at: _composed(context, config, overrides, first + at) for at, overrides in enumerate(jobs)}
    returned: dict[int, JobReturn] = {}
    together, alone = by_base(composed)
    for numbers in together:
        jobs_of_one_base = {number: partial(_run, context, task, composed[number], number, rungs) for number in numbers}
        returned |= train_together(jobs_of_one_base, n_jobs, max_tokens, claim)
    for number, reason in alone.items():
        if claim(number):
            _say(f"job {number} trains by itself: {reason}")
            returned[number] = _run(context, task, composed[number], number)
    return returned


def _composed(context: HydraContext, config: DictConfig, overrides: Sequence[str], number: int) -> DictConfig:
    composed = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.id = composed.hydra.job.num = number
    return composed


def by_base(configs: Mapping[int, DictConfig]) -> tuple[list[list[int]], dict[int, str]]:
    """Groups of jobs that may share a pass; and those that train alone, with the reason."""
    together: dict[str, list[int]] = {}
    alone: dict[int, str] = {}
    for number, config in configs.items():
        if "job" in config.hydra:
            HydraConfig.instance().set_config(config)  # values may refer to Hydra's own
        task = {key: value for key, value in config.items() if key != "hydra"}
        plain: Any = OmegaConf.to_container(OmegaConf.create(task), resolve=True)
        reason = why_config_alone(plain) or _why_hydra_alone(config.hydra)
        if reason:
            alone[number] = reason
            continue
        trainer = plain["trainer"]
        precision = [
            trainer.get(key) for key in ("bf16", "bf16_full_eval", "tf32", "use_cpu", "gradient_checkpointing")
        ]
        shared = {"model": plain["model"], "quant": plain.get("quant"), "precision": precision}
        together.setdefault(json.dumps(shared, sort_keys=True, default=str), []).append(number)
    for numbers in [numbers for numbers in together.values() if len(numbers) == 1]:
        alone[numbers[0]] = "no other job of the sweep has its base model"
    return [numbers for numbers in together.values() if len(numbers) > 1], dict(sorted(alone.items()))


def _why_hydra_alone(hydra: DictConfig) -> str | None:
    """Process-wide settings that concurrent jobs cannot have individually."""
    if OmegaConf.select(hydra, "job.chdir"):
        return "hydra.job.chdir=true changes the directory of the process"
    if OmegaConf.select(hydra, "job.env_set"):
        return "hydra.job.env_set changes the environment of the process"
    return None


def train_together(
    jobs: Mapping[int, Callable[[], Any]],
    n_jobs: int | None = None,
    max_tokens: int | None = None,
    claim: Callable[[int], bool] = lambda number: True,
) -> dict[int, Any]:
    """Run jobs with the same base together; return each job's result.

    Args:
        jobs: what runs each, by number.
        n_jobs, max_tokens: as for `run_fused`.
        claim: whether a job is this process's to train, asked when there is room for it.

    Raises:
        BaseException: that of the first interrupted job, or else of any failed one; the others have ended by then.
    """
    from sft.config.errors import Interrupted, PastHydra
    from sft.training.fused.group import Group, Member, QueuedJob
    from sft.training.fused.passes import Passes
    from sft.training.fused.table import Table

    passes, table = Passes(max_tokens), Table(len(jobs))
    group, returned = Group(passes, n_jobs, table), {}
    errors: list[BaseException] = []
    _say(f"{len(jobs)} jobs train together, {n_jobs or 'as many as the memory allows'} at a time")

    def ended(member: Member) -> None:
        if member.error is not None:
            errors.append(member.error)
        else:
            returned[member.number] = member.result

    try:
        with _signals_to(group), table:
            group.run((QueuedJob(number, run) for number, run in jobs.items() if claim(number)), ended)
    finally:
        passes.close()
    if group.stopping and not group.exhausted and not errors:
        errors.append(PastHydra(Interrupted("stopped before its first job; the same command continues it", 130)))
    if errors:
        interrupted = [error for error in errors if isinstance(error, PastHydra | Interrupted)]
        raise (interrupted or errors)[0]
    return returned


def _rungs(config: DictConfig) -> Rungs | None:
    """The pruner of a search by halving or hyperband, which compares all jobs that reach a rung together."""
    sweeper: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    if sweeper.get("pruner") not in ("halving", "hyperband"):
        return None
    _, direction = search_objective(config)
    return Rungs(int(sweeper["reduction_factor"]), direction)


def _run(
    context: HydraContext, task: TaskFunction, config: DictConfig, number: int, rungs: Rungs | None = None
) -> JobReturn:
    """Run one job from start to end, as Hydra's own launcher does."""
    HydraConfig.instance().set_config(config)
    sweeper: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    reporter = trial_reporter(sweeper, directory(config), number)
    judge = RungReporter(reporter, rungs, number) if reporter is not None and rungs is not None else reporter
    with reporting(judge):
        return run_job(
            hydra_context=context,
            task_function=task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


@contextmanager
def _signals_to(group: Any) -> Iterator[None]:
    """Forward signals to every running job: each writes its checkpoint and ends."""
    before = {number: signal.signal(number, group.signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    import sys

    print(text, file=sys.stderr)
