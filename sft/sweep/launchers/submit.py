"""A sweep's jobs through submitit: as one Slurm array, or as processes on this machine, a few at a time."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from sft.config.errors import Interrupted, PastHydra, UserError, not_installed
from sft.sweep.launchers.devices import assign_devices, threads_each, use_devices, visible_devices
from sft.sweep.launchers.job import Sweep, lost_job

# Parameters of submitit for every cluster; others get the cluster's name as a prefix.
SHARED = {
    "timeout_min",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "mem_gb",
    "nodes",
    "name",
    "stderr_to_stdout",
}


class Submitted:
    """One job as submitit pickles it.

    Args:
        sweep: the sweep of the job.
        devices: its share of this machine's accelerators; None where the cluster assigns them.
        threads: its number of threads.
    """

    def __init__(self, sweep: Sweep, devices: Sequence[str] | None, threads: int | None) -> None:
        self.sweep, self.devices, self.threads = sweep, devices, threads

    def __call__(self, overrides: Sequence[str], number: int) -> JobReturn:
        if self.devices is not None:
            use_devices(self.devices, self.threads or 1)
        elif "SLURM_CPUS_PER_TASK" in os.environ:
            os.environ.setdefault("OMP_NUM_THREADS", os.environ["SLURM_CPUS_PER_TASK"])
        try:
            return self.sweep.run(overrides, number)
        except PastHydra as past:
            if isinstance(past.error, Interrupted) and past.error.code == 128 + signal.SIGUSR1:
                # at the time limit the checkpoint is written, and submitit requeues the job
                signal.raise_signal(signal.SIGUSR1)
            raise

    def checkpoint(self, overrides: Sequence[str], number: int) -> Any:
        """The job that submitit requeues: it resumes in its directory."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, overrides, number)


def submit_all(
    sweep: Sweep, cluster: str, parameters: Mapping[str, Any], jobs: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Submit jobs and wait for them.

    Args:
        cluster: slurm or local.
        parameters: submitit's, `submitit_folder`, `max_num_timeout` and `array_parallelism` among them.
        jobs: the overrides of each.
        first: the first job's number.

    Raises:
        UserError: submitit is not installed, or there is no such cluster here.
    """
    executor = _executor(cluster, parameters)
    numbered = list(enumerate(jobs, first))
    if cluster != "local":
        with executor.batch():
            queued = [executor.submit(Submitted(sweep, None, None), list(each), number) for number, each in numbered]
        return [_result(job, overrides) for job, overrides in zip(queued, jobs, strict=True)]
    at_once = int(parameters.get("array_parallelism") or 1)
    devices, threads, returned = visible_devices(), threads_each(min(at_once, len(jobs))), []
    for start in range(0, len(jobs), at_once):
        group = numbered[start : start + at_once]
        running = [
            executor.submit(Submitted(sweep, assign_devices(devices, slot), threads), list(each), number)
            for slot, (number, each) in enumerate(group)
        ]
        try:
            returned += [_result(job, each) for job, (_, each) in zip(running, group, strict=True)]
        except KeyboardInterrupt:
            for job in running:
                job.cancel(check=False)
            raise
    return returned


def _executor(cluster: str, parameters: Mapping[str, Any]) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise not_installed("submitit", "submitit", f"hydra/launcher=submitit_{cluster}") from error
    found: dict[str, Any] = {
        key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in parameters.items()
    }
    folder, timeouts = found.pop("submitit_folder"), found.pop("max_num_timeout", None)
    if cluster == "local":
        found.pop("array_parallelism", None)
    begin = {} if timeouts is None else {f"{cluster}_max_num_timeout": timeouts}
    try:
        executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster, **begin)
        given = {k if k in SHARED else f"{cluster}_{k}": v for k, v in found.items() if v is not None}
        executor.update_parameters(**given)
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise UserError(" ".join(str(error).split()), where=f"hydra/launcher=submitit_{cluster}") from error
    return executor


def _result(job: Any, overrides: Sequence[str]) -> JobReturn:
    """Wait for one job; if it was killed, return a lost job so that the others are still awaited."""
    try:
        return job.results()[0]
    except Exception as error:
        return lost_job(overrides, error)
