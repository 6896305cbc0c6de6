"""Running a sweep's job in another process, for the launchers under hydra_plugins/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sft.config.paths import expanded


@dataclass
class Sweep:
    """What all jobs of a sweep share; it is pickled for the workers.

    Attributes:
        context: Hydra's loader and callbacks.
        task: the command's function.
        config: the sweep's config, Hydra's node included.
        state: Hydra's singletons.
    """

    context: HydraContext
    task: TaskFunction
    config: DictConfig
    state: dict[Any, Any]

    @classmethod
    def of(cls, context: HydraContext, task: TaskFunction, config: DictConfig) -> Sweep:
        """Created in the launching process."""
        from hydra.core.singleton import Singleton
        from hydra.core.utils import setup_globals

        from sft.sweep.callback import SweepCallback

        setup_globals()
        directory(config).mkdir(parents=True, exist_ok=True)
        # on_job_start, which does this otherwise, is only called in the workers
        for callback in context.callbacks.callbacks:
            if isinstance(callback, SweepCallback):
                task.at_stop = callback.stopped  # type: ignore[attr-defined]
        return cls(context, task, config, Singleton.get_state())

    def run(self, overrides: Sequence[str], number: int) -> JobReturn:
        """Compose and run one job, in a worker process."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.core.singleton import Singleton
        from hydra.core.utils import run_job, setup_globals
        from omegaconf import OmegaConf, open_dict

        from sft.config.resolvers import register
        from sft.sweep.search.pruning import reporting
        from sft.sweep.search.study import trial_reporter

        Singleton.set_state(self.state)
        setup_globals()
        register()
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        sweeper: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        with reporting(trial_reporter(sweeper, directory(config), number)):
            return run_job(
                hydra_context=self.context,
                task_function=self.task,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )


def directory(config: DictConfig) -> Path:
    """The sweep's directory."""
    return expanded(str(config.hydra.sweep.dir)).absolute()


@dataclass
class LostJob(JobReturn):
    """The result of a job whose process was killed (out of memory, by the queue); Hydra sees a job without a value."""

    error: str = ""


def lost_job(overrides: Sequence[str], error: BaseException) -> LostJob:
    """The result of a job whose process died with this error; the other jobs continue."""
    what = str(error).strip().partition("\n")[0]
    return LostJob(overrides=list(overrides), status=JobStatus.COMPLETED, error=f"its process died: {what}")


def record_lost_jobs(config: DictConfig, returned: Sequence[JobReturn], first: int) -> None:
    """Record in sweep.json and run.json the failure of jobs whose process died.

    Args:
        config: the sweep's.
        returned: of consecutive jobs, `first` being the first one's number.
    """
    import sys

    from sft.config.text import without_control_characters
    from sft.run.directory import RunDirectory
    from sft.run.record import RunRecord
    from sft.safety.secrets import redact
    from sft.sweep.record import SweepRecord

    record = SweepRecord(directory(config))
    jobs = {job["number"]: job for job in record.read().get("jobs", [])}
    for number, each in enumerate(returned, first):
        if not isinstance(each, LostJob):
            continue
        print(without_control_characters(redact(f"job {number} failed: {each.error}")), file=sys.stderr)
        if number not in jobs:
            continue
        record.job(number, status="failed", error=each.error)
        run = RunRecord(RunDirectory(record.directory / str(jobs[number]["directory"])))
        if run.content.get("status") == "running":
            run.finish("failed", error=each.error)
