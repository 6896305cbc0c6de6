"""`hydra/launcher=fused`: a sweep's jobs train together on one base. The work is done in sft.sweep.launchers.fused."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class FusedLauncher(Launcher):
    """Runs jobs together in this process, those that share base, quantization and precision.

    Args:
        n_jobs: how many at a time; None: as many as the memory allows.
        max_tokens_per_step: of a pass; None: no bound but the memory's.
        processes: how many, each with a group of its own; None: one a card, one without any.
    """

    def __init__(
        self, n_jobs: int | None = None, max_tokens_per_step: int | None = None, processes: int | None = None
    ) -> None:
        self.n_jobs, self.max_tokens, self.processes = n_jobs, max_tokens_per_step, processes

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from sft.config.errors import PastHydra, UserError, UserErrors
        from sft.sweep.launchers.fused import run_fused
        from sft.sweep.launchers.job import Sweep, record_lost_jobs
        from sft.sweep.launchers.shares import processes_for, run_shares

        numbers = {"n_jobs": self.n_jobs, "max_tokens_per_step": self.max_tokens, "processes": self.processes}
        wrong = [
            UserError(f"{value!r} is out of range", where=f"hydra.launcher.{key}", remedy="1 or more, or null")
            for key, value in numbers.items()
            if value is not None and (type(value) is not int or value < 1)
        ]
        if wrong:  # Hydra would wrap it
            raise PastHydra(UserErrors(wrong))
        processes = min(processes_for(self.processes), len(job_overrides))
        if processes == 1:
            given = self.context, self.task, self.config
            return run_fused(*given, job_overrides, initial_job_idx, self.n_jobs, self.max_tokens)
        sweep = Sweep.of(self.context, self.task, self.config)
        returned = run_shares(sweep, job_overrides, initial_job_idx, processes, self.n_jobs, self.max_tokens)
        record_lost_jobs(self.config, returned, initial_job_idx)
        return returned
