"""sweep.json: the command of a sweep, and the state of each of its jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from sft.run.directory import RunDirectory
from sft.run.record import now, read_record

NAME = "sweep.json"
ENDED = ("finished", "pruned", "failed", "interrupted")


class SweepRecord:
    """Keeps a sweep directory's sweep.json; safe with several processes (each change is a locked read and atomic
    write).

    Args:
        directory: the sweep's directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = RunDirectory(directory)

    def read(self) -> dict[str, Any]:
        """Its content; {} where there is none yet."""
        return self.files.read_json(NAME, {}) or {}

    def begin(self, facts: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]]) -> None:
        """Write the start of a sweep, or of its next session, keeping what is known about its jobs.

        Args:
            facts: command, overrides, swept (keys), objective, direction.
            jobs: number, directory and overrides of the jobs that are known beforehand.
        """
        with self._changing() as content:
            content.update(facts)
            content.setdefault("started", now())
            content.update(status="running", ended=None)
            known = {job["number"]: job for job in content.get("jobs", [])}
            for job in jobs:
                known.setdefault(job["number"], {**job, "status": "pending", "error": None})
            content["jobs"] = [known[number] for number in sorted(known)]

    def job(self, number: int, **facts: Any) -> None:
        """Update the entry of one job."""
        with self._changing() as content:
            jobs = {job["number"]: job for job in content.setdefault("jobs", [])}
            jobs[number] = {"number": number, "status": "pending", "error": None, **jobs.get(number, {}), **facts}
            content["jobs"] = [jobs[each] for each in sorted(jobs)]

    def end(self, status: str) -> dict[str, Any]:
        """Write the end of this session, with every job's state from its directory. Returns the content."""
        with self._changing() as content:
            for job in content.get("jobs", []):
                job["status"] = state_of(self.directory / str(job["directory"]), job)
            content.update(status=status, ended=now())
        return content

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The content for changing; written when the block ends. One process at a time."""
        self.files.create()
        with FileLock(self.directory / f".{NAME}.lock"):
            content = self.read()
            yield content
            order = ("command", "overrides", "swept", "objective", "direction", "status", "started", "ended")
            first = {key: content[key] for key in order if key in content}
            self.files.write_json(NAME, {**first, **content})


def state_of(directory: Path, job: Mapping[str, Any]) -> str:
    """The state of a job: that of its run.json, unless it failed before it could be written there."""
    if job.get("error"):
        return "failed"
    status = str(read_record(RunDirectory(directory)).get("status") or job.get("status") or "pending")
    return "interrupted" if status == "running" else status
