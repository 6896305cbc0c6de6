"""`hydra/launcher=submitit_slurm` and `submitit_local`: each job its own Slurm job, or process, through submitit."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SubmititLauncher(Launcher):
    """Runs jobs through submitit. The work is done in sft.sweep.launchers.submit.

    Args:
        cluster: slurm or local.
        parameters: the keys of `conf/hydra/launcher/submitit_*.yaml`, as submitit.AutoExecutor takes them.
    """

    requires = ("submitit", "submitit")  # the module, and the extra that brings it

    def __init__(self, cluster: str, **parameters: Any) -> None:
        self.cluster, self.parameters = cluster, parameters

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from sft.config.errors import PastHydra, UserError
        from sft.sweep.launchers.job import Sweep, record_lost_jobs
        from sft.sweep.launchers.submit import submit_all

        sweep = Sweep.of(self.context, self.task, self.config)
        try:
            returned = submit_all(sweep, self.cluster, self.parameters, job_overrides, initial_job_idx)
        except UserError as error:  # Hydra would wrap it
            raise PastHydra(error) from error
        record_lost_jobs(self.config, returned, initial_job_idx)
        return returned
