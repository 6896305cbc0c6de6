"""Hydra callbacks of a sweep: check it before the first job, record it, and rank it after the last."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from sft.config.errors import PastHydra, RunFailed
from sft.config.paths import expanded

if TYPE_CHECKING:
    from sft.run.lock import RunLock
    from sft.sweep.plan import Plan
    from sft.sweep.record import SweepRecord


class DirectoriesCallback(Callback):
    """Refuses a multirun in which two jobs would write the same directory; for commands without a sweep record."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check every job's directory. Hydra swallows errors of its callbacks, so they are raised as PastHydra."""
        from sft.sweep.directories import job_overrides, refuse_shared_directories

        try:
            refuse_shared_directories(config, job_overrides(config))
        except Exception as error:
            raise PastHydra(error) from error


class SweepCallback(Callback):
    """Keeps sweep.json, refuses a directory that holds another sweep, and writes the leaderboard at the end.

    Hydra swallows errors of its callbacks, so they are raised as PastHydra.
    """

    def __init__(self) -> None:
        self.record: SweepRecord | None = None
        self.lock: RunLock | None = None
        self.task: Any = None

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **_: Any) -> None:
        """Check the directory and every job that an earlier session began in it, and write sweep.json."""
        from sft.run.lock import RunLock
        from sft.sweep.plan import plan, refuse_other_sweep
        from sft.sweep.record import SweepRecord

        directory = expanded(config.hydra.sweep.dir).absolute()
        try:
            self.lock = RunLock(directory).acquire()
            self.record = SweepRecord(directory)
            planned = plan(config)
            refuse_other_sweep(self.record, planned, str(config_name))
            self.record.begin(planned.facts, planned.jobs)
            _tell_of_fusing(config, planned)
        except Exception as error:
            self._release()
            raise PastHydra(error) from error

    def on_job_start(self, config: DictConfig, *, task_function: Any = None, **_: Any) -> None:
        """Record a job's directory; searches create their jobs one by one."""
        if not _in_sweep(config):
            return
        self.task = task_function
        task_function.at_stop = self.stopped
        record = self._of(config)
        from sft.sweep.plan import swept_of

        number, directory = _number(config), Path(config.hydra.runtime.output_dir)
        swept = swept_of(OmegaConf.to_container(config.hydra.overrides.task), _swept(record.read()))  # type: ignore[arg-type]
        record.job(number, directory=directory.name, overrides=swept, status="running", error=None)

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        """Record how a job ended, and an error that occurred before it could be written to the run directory."""
        from sft.run.directory import RunDirectory
        from sft.run.record import RunRecord
        from sft.sweep.record import state_of

        if not _in_sweep(config):
            return
        record, directory = self._of(config), Path(config.hydra.runtime.output_dir)
        error = getattr(self.task, "error", None)
        run = RunRecord(RunDirectory(directory))
        if error and run.content.get("status") in (None, "running"):
            run.finish("failed", error=error)
        record.job(_number(config), status=state_of(directory, {"error": error}), error=error)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write the end and the leaderboard; raise an error listing the failed jobs, if there are any."""
        record = self._of(config)
        content = record.end("finished")
        failed = [job for job in content["jobs"] if job["status"] == "failed"]
        if failed:
            content = record.end("failed")
        self._rank(record, content)
        self._release()
        if failed:
            raise PastHydra(RunFailed(_listing(failed, content)))

    def stopped(self, error: BaseException) -> None:
        """Handle an interrupted sweep (Ctrl-C, a signal): write its state and rank the finished jobs."""
        if self.lock is None:
            return  # it has ended, with an error that lists its failed jobs
        if self.record is not None:
            self._rank(self.record, self.record.end("interrupted"))
        self._release()

    def _rank(self, record: SweepRecord, content: Mapping[str, Any]) -> None:
        from sft.sweep.leaderboard import show, write_leaderboard

        if not any(job["status"] == "finished" for job in content["jobs"]):
            return
        try:
            show(write_leaderboard(record.directory))
        except Exception as error:  # the runs are finished and saved; a leaderboard can be written again
            print(f"no leaderboard: {error}\n  -> python -m sft.leaderboard dir={record.directory}", file=sys.stderr)

    def _of(self, config: DictConfig) -> SweepRecord:
        """The sweep's record; a launcher's worker process opens its own."""
        from sft.sweep.record import SweepRecord

        if self.record is None:
            self.record = SweepRecord(expanded(config.hydra.sweep.dir).absolute())
        return self.record

    def _release(self) -> None:
        if self.lock is not None:
            self.lock.release()
            self.lock = None


def _tell_of_fusing(config: DictConfig, planned: Plan) -> None:
    """Say once that the jobs, which run one after another, could train together."""
    from sft.sweep.search.hydra import BASIC
    from sft.training.fused.refusal import why_config_alone

    one_by_one = OmegaConf.select(config, "hydra.launcher._target_") == BASIC
    if one_by_one and len(planned.jobs) > 1 and why_config_alone(planned.config) is None:
        print("these jobs could train together on one base model: hydra/launcher=fused", file=sys.stderr)


def _in_sweep(config: DictConfig) -> bool:
    return not OmegaConf.is_missing(config.hydra.job, "num")


def _number(config: DictConfig) -> int:
    return int(config.hydra.job.num)


def _swept(content: Mapping[str, Any]) -> list[str]:
    return list(content.get("swept") or [])


def _listing(failed: list[Mapping[str, Any]], content: Mapping[str, Any]) -> str:
    lines = [f"{job['directory']}: {str(job['error'] or '').splitlines()[0] if job['error'] else ''}" for job in failed]
    many = f"{len(failed)} of {len(content['jobs'])} jobs failed"
    return "\n  ".join([f"{many}; tracebacks are in their train.log files", *lines])
