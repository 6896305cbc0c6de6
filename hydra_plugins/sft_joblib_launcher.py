"""`hydra/launcher=joblib`: a sweep's jobs in parallel processes on one machine. The work is done in sft.sweep.launchers.pool."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class JoblibLauncher(Launcher):
    """Runs jobs in parallel and assigns the accelerators to them.

    Args:
        n_jobs: how many at a time; None: one per accelerator, two without one.
        gpus_per_job: number of accelerators per job.
    """

    requires = ("joblib", "joblib")  # the module, and the extra that brings it

    def __init__(self, n_jobs: int | None = None, gpus_per_job: int = 1) -> None:
        self.n_jobs, self.gpus_per_job = n_jobs, gpus_per_job
        self.pool: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from sft.config.errors import PastHydra, UserError
        from sft.sweep.launchers.devices import visible_devices
        from sft.sweep.launchers.job import Sweep, record_lost_jobs
        from sft.sweep.launchers.pool import Pool

        if self.pool is None:
            devices = visible_devices()
            workers = self.n_jobs or (max(1, len(devices) // self.gpus_per_job) if devices else 2)
            try:
                self.pool = Pool(workers, devices, self.gpus_per_job)
            except UserError as error:  # Hydra would wrap it
                raise PastHydra(error) from error
        sweep = Sweep.of(self.context, self.task, self.config)
        returned = self.pool.run(sweep.run, job_overrides, initial_job_idx)
        record_lost_jobs(self.config, returned, initial_job_idx)
        return returned
