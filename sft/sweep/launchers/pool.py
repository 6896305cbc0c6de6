"""Parallel processes on one machine that outlive a job that kills its worker (joblib's loky underneath)."""

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
from sft.sweep.launchers.devices import THREADS, claim_slot, deal, take, threads_each
from sft.sweep.launchers.job import lost

_PR_SET_PDEATHSIG = 1

STOP = "stop"

Run = Callable[[Sequence[str], int], JobReturn]


class Pool:
    """Worker processes that stay for the next jobs, each with its own devices and its share of the cores.

    Args:
        workers: how many jobs run at a time.
        devices: the accelerators to deal out.
        gpus_per_job: how many of them each worker gets.
    """

    def __init__(self, workers: int, devices: Sequence[str] = (), gpus_per_job: int = 1) -> None:
        self.loky = import_loky()
        self.workers, self.devices, self.gpus_per_job = workers, tuple(devices), gpus_per_job
        self.executor: Any = None
        self.started = 0
        self.directory: tempfile.TemporaryDirectory[str] | None = None  # removed with the pool
        self.place = Path()
        atexit.register(self.close)

    def run(self, run: Run, jobs: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Run jobs, as many at a time as there are workers.

        Args:
            run: runs one job in a worker, given its overrides and its number.
            jobs: the overrides of each.
            first: the first job's number.

        Returns:
            one for each job, in order; a job whose process died has failed: those that ran while a worker died
            are run once more, one by one, for the machine's memory may have been short.

        Raises:
            PastHydra: a job was interrupted; those that run by then end their step first.
        """
        returned: dict[int, JobReturn] = {}
        while left := [index for index in range(len(jobs)) if index not in returned]:
            error = self._session(run, jobs, first, left, returned)
            if error is None:
                break
            suspects = [index for index in left if index not in returned and self._was_running(index)]
            if not suspects:  # the workers cannot even start
                returned.update({index: lost(jobs[index], error) for index in left if index not in returned})
            self.close()
            for index in suspects:  # whoever dies alone, too, is the one
                error = self._session(run, jobs, first, [index], returned)
                if error is not None:
                    returned[index] = lost(jobs[index], error)
                    self.close()
        return [returned[index] for index in range(len(jobs))]

    def _was_running(self, index: int) -> bool:
        return (self.place / f"running-{index}").exists()

    def close(self) -> None:
        """End the workers; the next jobs get new ones."""
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
        """Run what is left. Returns the error that broke the pool, None where every job came to its end."""
        self._start(min(self.workers, len(jobs)))
        futures: dict[int, Any] = {}
        try:
            for index in left:
                futures[index] = self.executor.submit(_work, run, jobs[index], first + index, self.place, index)
            for index, future in futures.items():
                returned[index] = future.result()
        except self.loky.process_executor.BrokenProcessPool as error:
            for index, future in futures.items():  # those that had come to their end are kept
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
    """In a worker, before its first job."""
    if sys.platform == "linux":  # a killed sweep's jobs write their checkpoints and end, too
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    global _parent
    _parent = parent
    take(deal(devices, claim_slot(place, workers), each), threads)


def _work(run: Run, overrides: Sequence[str], number: int, place: Path, index: int) -> JobReturn:
    if os.getppid() != _parent:
        os._exit(1)  # the sweep is gone; its next session runs this job
    if (place / STOP).exists():  # handed to the worker before the sweep was broken off
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
