"""Trackio."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.run.directory import RunDirectory
from sft.run.trackers.base import Tracker, library, log, panels, remember, remembered, without_secrets


class TrackioTracker(Tracker):
    """Logs to Trackio: a local database (TRACKIO_DIR), or a Space on the hub.

    Args:
        project: the project's name.
        space_id: a Space ("user/name") to log to; None logs locally.
        name: the run's name there; None takes the run directory's.
        group: None groups the jobs of a sweep.
        private: whether a Space that is made for this is private.
        log_adapter: keep the adapter (or the model of a full fine-tune) as an artifact.
        log_merged: keep the merged model as an artifact.
    """

    requires = ("trackio", "trackers")

    def __init__(
        self,
        project: str = "sft",
        space_id: str | None = None,
        name: str | None = None,
        group: str | None = None,
        private: bool | None = True,
        log_adapter: bool = False,
        log_merged: bool = False,
    ) -> None:
        self.project, self.space_id, self.name, self.group, self.private = project, space_id, name, group, private
        self.kinds = {"adapter": log_adapter, "model": log_adapter, "merged": log_merged}
        self._run: Any = None

    def start(self, run: RunDirectory, config: Mapping[str, Any], name: str, group: str | None = None) -> None:
        """See :meth:`Tracker.start`."""
        trackio = library("trackio")
        known = remembered(run, "trackio")
        try:
            with _stdout_kept():
                self._run = trackio.init(
                    project=self.project,
                    name=known or self.name or name,
                    group=self.group or group,
                    space_id=self.space_id,
                    private=self.private,
                    config=without_secrets(config),
                    resume="allow" if known else "never",
                    embed=False,
                )
        except Exception as error:  # errors of Trackio, the hub and the HTTP client
            raise UserError(
                f"trackio did not start: {error}",
                where="tracker",
                remedy="check tracker.project and tracker.space_id (a Space needs HF_TOKEN), or use tracker=none",
            ) from error
        remember(run, "trackio", self._run.name)
        log.info("trackio: `trackio show --project %s`", self.project)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """See :meth:`Tracker.log`."""
        if self._run is not None:
            with _stdout_kept():
                self._run.log(panels(metrics), step=step)

    def artifact(self, path: Path, name: str, kind: str) -> None:
        """See :meth:`Tracker.artifact`."""
        if self._run is not None and self.kinds.get(kind) and path.exists():
            with _stdout_kept():
                self._run.log_artifact(str(path), name=name, type="model")

    def finish(self, exit_code: int = 0) -> None:
        """See :meth:`Tracker.finish`."""
        run, self._run = self._run, None
        if run is not None:
            with _stdout_kept():
                run.finish()


def _stdout_kept() -> contextlib.AbstractContextManager[Any]:
    """Keep Trackio's output from stdout, which is for the command's result."""
    return contextlib.redirect_stdout(sys.stderr)
