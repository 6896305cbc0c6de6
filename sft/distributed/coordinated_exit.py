"""Coordinated shutdown: the first error on any rank is raised on all ranks, and rank 0 reports it once.

A failing rank posts a failure report to torchrun's store (at MASTER_ADDR), closes its connections and waits until
rank 0 has printed the reason: torchrun kills all processes as soon as one exits, before rank 0 could finish printing.
Each process polls for a report in a background thread, because a process that waits in a GPU collective notices nothing
else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, Self

from sft.config.errors import Interrupted, RunFailed
from sft.config.rank import is_main_process, rank
from sft.distributed import failure_reports
from sft.distributed.failure_reports import FailureReport, exit_code, message_of
from sft.distributed.ranks import Ranks, machine_id
from sft.run.log import FILE_ONLY
from sft.safety.secrets import redact
from sft.system.processes import alive

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5  # between two polls of the store
GRACE_SECONDS = 10.0  # for a rank to exit by itself after another's report, before it is forced to
REPORT_SECONDS = 3.0  # for a report to arrive after a connection error
EXIT_DELAY_SECONDS = 3.0  # after rank 0's report, so that torchrun sees rank 0 exit first
MAIN_SECONDS = failure_reports.TIMEOUT  # for rank 0's report; torchrun itself waits 30 seconds
_BROKEN = re.compile(
    r"closed by peer|connection (?:was )?(?:reset|refused|closed)|broken pipe|gloo|nccl|processgroup|socket", re.I
)

_failed_first = False  # whether this process was the first to fail in training


class ProcessLost(RunFailed):
    """Another process of the run exited without a failure report: it was killed."""


class CoordinatedShutdown:
    """Coordinates the end of this process with the other ranks within the block; does nothing in a single process.

    Args:
        ranks: the processes.
        on_remote_failure: called on rank 0 with another rank's error where rank 0 cannot exit by itself.
    """

    def __init__(self, ranks: Ranks, on_remote_failure: Callable[[Exception], None]) -> None:
        self.ranks, self.on_remote_failure = ranks, on_remote_failure
        self.done = threading.Event()

    def __enter__(self) -> Self:
        global _failed_first
        if self.ranks.is_distributed:
            _failed_first = False
            failure_reports.begin()
            threading.Thread(target=self._watch, name="ranks", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()

    def first_error(self, error: BaseException) -> BaseException:
        """Post a failure report, and return the first error of all ranks: this one, or another rank's earlier one.

        A connection error is never the reason itself: it means that another process is gone.
        """
        connection_error = _is_connection_error(error)
        deadline = time.monotonic() + REPORT_SECONDS
        while connection_error and time.monotonic() < deadline:
            report = failure_reports.read()
            if report is not None:
                return self._error_of(report, error)
            time.sleep(0.1)
        if connection_error:
            error = _process_lost(self._dead_processes())
        report = failure_reports.post(error)
        return error if report is None or report.rank == rank() else self._error_of(report, error)

    def _error_of(self, report: FailureReport, error: BaseException) -> BaseException:
        """Another rank's error as this process raises it."""
        if report.rank == rank() or report.message == message_of(error):  # all ranks met the same error
            return error
        log.error("rank %d failed first:\n%s", report.rank, report.traceback_text, extra=FILE_ONLY)
        return report.error

    @contextlib.contextmanager
    def raise_first_error(self) -> Iterator[None]:
        """Raise the error of the rank that failed first in place of the block's own."""
        try:
            yield
        except BaseException as error:
            if not self.ranks.is_distributed:
                raise
            first = self.first_error(error)
            if first is error:
                global _failed_first
                _failed_first = True
                raise
            raise first from error

    def _dead_processes(self) -> str:
        """The dead processes of this machine, by rank; "" where all are alive."""
        here = machine_id()
        return ", ".join(
            f"rank {index} (process {pid})"
            for index, (host, pid) in enumerate(self.ranks.processes)
            if host == here and not alive(pid)
        )

    def _watch(self) -> None:
        """The thread: after another rank's report or death, wait for this process to exit by itself, then end it."""
        with contextlib.suppress(Exception):  # the store is gone, because the run has ended
            while not self.done.wait(POLL_SECONDS):
                report = failure_reports.read()
                if report is None and (dead := self._dead_processes()):
                    report = FailureReport(-1, str(_process_lost(dead)), 1)
                if report is None or report.rank == rank():
                    continue
                if self.done.wait(GRACE_SECONDS if is_main_process() else GRACE_SECONDS + MAIN_SECONDS):
                    return
                if is_main_process():
                    self.on_remote_failure(report.error)
                    sys.stderr.write(f"error: {report.error}\n")
                    sys.stderr.flush()
                    failure_reports.mark_reported()
                os._exit(report.code)


def coordinated_exit(error: BaseException, report_and_exit: Callable[[], NoReturn]) -> NoReturn:
    """How the processes of a distributed run exit: rank 0 prints the error, the others wait for that.

    Args:
        error: this process's error.
        report_and_exit: prints it and exits with its exit code.
    """
    failure_reports.post(error)
    _write_error_file(error)
    if not is_main_process():
        _exit_after_main(error)
        sys.stderr.write(f"[rank {rank()}] ")
    try:
        report_and_exit()
    finally:
        sys.stderr.flush()
        failure_reports.mark_reported()


def _exit_after_main(error: BaseException) -> None:
    """Exit after rank 0 has printed the error. Returns only where it does not within the time limit.

    The rank that failed first in training exits at once: its closed connections notify the others.
    """
    if _failed_first:
        os._exit(exit_code(error))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(exit_code(error)))  # torchrun terminates the remaining processes
    deadline = time.monotonic() + MAIN_SECONDS
    while time.monotonic() < deadline:
        if failure_reports.is_reported():
            time.sleep(EXIT_DELAY_SECONDS)
            os._exit(exit_code(error))
        time.sleep(0.1)


def _write_error_file(error: BaseException) -> None:
    """Write the reason into the file that torchrun reads: it prints it last."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and not isinstance(error, Interrupted | KeyboardInterrupt):
        about = {"py_callstack": redact(message_of(error)), "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": about["py_callstack"], "extraInfo": about}}, file)


def _process_lost(processes: str) -> ProcessLost:
    return ProcessLost(
        f"{processes or 'another process of this run'} exited without an error report: killed, or out of memory"
    )


def _is_connection_error(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and bool(_BROKEN.search(str(error)))
