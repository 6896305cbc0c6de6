"""A pool of processes on one machine that survives jobs which kill their worker (based on joblib's loky)."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn

from sft.config.errors import not_installed
from sft.sweep.launchers.devices import THREADS, assign_devices, claim_slot, threads_each, use_devices
from sft.sweep.launchers.job import lost_job

_PR_SET_PDEATHSIG = 1

STOP = "stop"

Run = Callable[[Sequence[str], int], JobReturn]


class Pool:
    """Worker processes that are reused for further jobs, each with its own devices and its share of the cores.

    Args:
        workers: number of concurrent jobs.
        devices: the accelerators to distribute.
        gpus_per_job: accelerators per worker.
    """

    def __init__(self, workers: int, devices: Sequence[str] = (), gpus_per_job: int = 1) -> None:
        self.loky = import_loky()
        self.workers, self.devices, self.gpus_per_job = workers, tuple(devices), gpus_per_job
        self.executor: Any = None
        self.started = 0
        self.directory: tempfile.TemporaryDirectory[str] | None = None  # deleted with the pool
        self.place = Path()
        atexit.register(self.close)

    def run(self, run: Run, jobs: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Run jobs, as many concurrently as there are workers.

        Args:
            run: runs one job in a worker, given its overrides and its number.
            jobs: the overrides of each.
            first: the first job's number.

        Returns:
            one for each job, in order; a job whose process died has failed. Jobs that ran while a worker died are run
            once more, one by one, because memory may have been short.

        Raises:
            PastHydra: a job was interrupted; running jobs finish their step first.
        """
        returned: dict[int, JobReturn] = {}
        while left := [index for index in range(len(jobs)) if index not in returned]:
            error = self._session(run, jobs, first, left, returned)
            if error is None:
                break
            suspects = [index for index in left if index not in returned and self._was_running(index)]
            if not suspects:  # the workers cannot start at all
                returned.update({index: lost_job(jobs[index], error) for index in left if index not in returned})
            self.close()
            for index in suspects:  # a job whose process also dies alone has failed
                error = self._session(run, jobs, first, [index], returned)
                if error is not None:
                    returned[index] = lost_job(jobs[index], error)
                    self.close()
        return [returned[index] for index in range(len(jobs))]

    def _was_running(self, index: int) -> bool:
        return (self.place / f"running-{index}").exists()

    def close(self) -> None:
        """Stop the workers; further jobs get new ones."""
        if self.executor is not None:
            self.executor.shutdown(wait=True)
            self.executor = None

    def _start(self, workers: int) -> None:
        if self.executor is not None and self.started >= workers:
            return
        self.close()
        self.started, threads = workers, threads_each(workers)
        self.directory = tempfile.TemporaryDirectory(prefix="sft-pool-", ignore_cleanup_errors=True)
        self.place = Path(self.directory.name)
        self.executor = self.loky.ProcessPoolExecutor(
            max_workers=workers,
            initializer=_begin,
            initargs=(self.place, workers, self.devices, self.gpus_per_job, threads, os.getpid()),
            env=dict.fromkeys(THREADS, str(threads)),
        )

    def _session(
        self, run: Run, jobs: Sequence[Sequence[str]], first: int, left: Sequence[int], returned: dict[int, JobReturn]
    ) -> BaseException | None:
        """Run the remaining jobs. Returns the error that broke the pool, None if every job finished."""
        self._start(min(self.workers, len(jobs)))
        futures: dict[int, Any] = {}
        try:
            for index in left:
                futures[index] = self.executor.submit(_work, run, jobs[index], first + index, self.place, index)
            for index, future in futures.items():
                returned[index] = future.result()
        except self.loky.process_executor.BrokenProcessPool as error:
            for index, future in futures.items():  # results of finished jobs are kept
                if future.done() and future.exception() is None:
                    returned[index] = future.result()
            return error
        except BaseException:
            (self.place / STOP).touch()
            for future in futures.values():
                future.cancel()
            self.close()
            raise
        return None


def _begin(place: Path, workers: int, devices: Sequence[str], each: int, threads: int, parent: int) -> None:
    """Initializer of a worker."""
    if sys.platform == "linux":  # when the sweep is killed, its jobs write their checkpoints and exit too
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    global _parent
    _parent = parent
    use_devices(assign_devices(devices, claim_slot(place, workers), each), threads)


def _work(run: Run, overrides: Sequence[str], number: int, place: Path, index: int) -> JobReturn:
    if os.getppid() != _parent:
        os._exit(1)  # the sweep has ended; its next session runs this job
    if (place / STOP).exists():  # given to the worker before the sweep was interrupted
        return JobReturn()
    running = place / f"running-{index}"
    running.touch()
    returned = run(overrides, number)
    running.unlink()
    return returned


_parent = 0


def import_loky() -> Any:
    """joblib's process pool.

    Raises:
        UserError: joblib is not installed.
    """
    try:
        from joblib.externals import loky
    except ImportError as error:
        raise not_installed("joblib", "joblib", "hydra/launcher=joblib") from error
    return loky
