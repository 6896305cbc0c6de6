"""run.json: the inputs of a run and its status."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, get_args

from sft.config.rank import world_size
from sft.run import environment
from sft.run.directory import RunDirectory
from sft.safety.secrets import redact_command, typed_command

Status = Literal["running", "finished", "interrupted", "failed", "pruned"]


class RunRecord:
    """Keeps a run directory's run.json. A resumed run adds a session and does not change the earlier ones.

    Args:
        run: the run directory.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.content: dict[str, Any] = run.read_json(run.run_json, {}) or {}

    def start(
        self,
        *,
        seed: int | None = None,
        command: Sequence[str] | None = None,
        data: Mapping[str, Any] | None = None,
        resumed_from: str | None = None,
        changed: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Write the status running, with versions, hardware, code and command.

        Args:
            seed: the run's seed.
            command: the command line (as typed by default); secrets in it are not written.
            data: fingerprints of the data, by source.
            resumed_from: the name of the checkpoint that this session resumes.
            changed: settings that change with this session, by key: (then, now).
            more: further facts, JSON values, stored at the top level.
        """
        clean = typed_command() if command is None else redact_command(command)
        session = {
            "started": now(),
            "ended": None,
            "status": "running",
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": shlex.join(clean),
            "resumed_from": resumed_from,
            **({"changed": {key: list(pair) for key, pair in changed.items()}} if changed else {}),
        }
        self.content.update(
            status="running",
            started=self.content.get("started") or session["started"],
            ended=None,
            command=session["command"],
            seed=seed,
            world_size=world_size(),
            versions=environment.versions(),
            hardware=environment.hardware(),
            git=environment.git_state(),
            error=None,
            **more,
        )
        if data is not None:
            self.content["data"] = dict(data)
        self.content.setdefault("sessions", []).append(session)
        self._write()

    def update(self, **facts: Any) -> None:
        """Add or replace facts at the top level, such as ``data`` fingerprints known only after preparation."""
        self.content.update(facts)
        self._write()

    def finish(self, status: Status, *, error: BaseException | str | None = None, **more: Any) -> None:
        """Write the end of this session: status, time, and the error if it failed."""
        if status not in get_args(Status):
            raise ValueError(f"status is one of {', '.join(get_args(Status))}, not {status!r}")
        ended = now()
        if isinstance(error, BaseException):
            error = f"{type(error).__name__}: {error}"
        self.content.update(status=status, ended=ended, error=error, **more)
        if self.content.get("sessions"):
            self.content["sessions"][-1].update(status=status, ended=ended)
        self._write()

    def _write(self) -> None:
        self.run.write_json(self.run.run_json, self.content)


def read_record(run: RunDirectory) -> dict[str, Any]:
    """run.json's content, {} where there is none yet."""
    return run.read_json(run.run_json, {}) or {}


def has_made_steps(run: RunDirectory) -> bool:
    """Whether a run has made a step in this directory; until then its config may still be changed."""
    from sft.run.checkpoint import listed

    return (
        read_record(run).get("status") in ("finished", "pruned")
        or run.metrics_jsonl.exists()
        or bool(listed(run.checkpoints))
    )


def now() -> str:
    """The local time with its offset, to the second, in ISO 8601."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
