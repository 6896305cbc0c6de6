"""Weights & Biases."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sft.config.errors import UserError
from sft.run.directory import RunDirectory
from sft.run.log_lines import job_prefix
from sft.run.trackers.base import Tracker, library, log, panels, remember, remembered, without_secrets
from sft.safety.secrets import redact_command


class WandbTracker(Tracker):
    """Logs to wandb; each run directory is one wandb run, also when it is resumed.

    Args:
        project, entity: where the run belongs; entity None is the user's default.
        name: the run's name there; None takes the run directory's.
        group: None groups the jobs of a sweep.
        tags: labels.
        mode: online, offline (written into the run directory, to be sent with `wandb sync`) or disabled. The
            environment's WANDB_API_KEY=disabled disables in any case.
        log_adapter: upload the adapter (or the model of a full fine-tune) as an artifact when training ends.
        log_merged: upload the merged model as an artifact of its own.
    """

    requires = ("wandb", None)

    def __init__(
        self,
        project: str | None = "sft",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        mode: Literal["online", "offline", "disabled"] = "online",
        log_adapter: bool = False,
        log_merged: bool = False,
    ) -> None:
        if mode not in ("online", "offline", "disabled"):
            raise UserError(
                f"{mode!r} is not a mode of wandb", where="tracker.mode", remedy="online, offline or disabled"
            )
        self.project, self.entity, self.name, self.group = project, entity, name, group
        self.tags = list(tags or [])
        self.mode = "disabled" if os.environ.get("WANDB_API_KEY", "").strip().lower() == "disabled" else mode
        self.kinds = {"adapter": log_adapter, "model": log_adapter, "merged": log_merged}
        self._run: Any = None

    def start(self, run: RunDirectory, config: Mapping[str, Any], name: str, group: str | None = None) -> None:
        """See :meth:`Tracker.start`."""
        if self.mode == "disabled":
            return
        wandb = library("wandb")
        known = remembered(run, "wandb")
        directory = Path(os.environ.get("WANDB_DIR") or run.create())
        directory.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                name=self.name or name,
                group=self.group or group,
                tags=self.tags or None,
                mode=self.mode,
                dir=str(directory),
                config=without_secrets(config),
                id=known,
                resume="allow" if known and self.mode == "online" else None,
                reinit="create_new" if job_prefix() else "finish_previous",  # jobs that train together have one each
                settings=self._settings(wandb),
            )
        except (wandb.errors.Error, OSError) as error:
            raise UserError(
                f"wandb did not start: {error}",
                where="tracker",
                remedy="set WANDB_API_KEY (in .env or by `wandb login`), or use tracker.mode=offline or tracker=none",
            ) from error
        remember(run, "wandb", self._run.id)
        offline = f"offline in {directory / 'wandb'}; send it with `wandb sync`"
        log.info("wandb: %s", self._run.url if self.mode == "online" else offline)

    def _settings(self, wandb: Any) -> Any:
        """Quiet settings, without anything that could contain a secret; run.json has the redacted command line."""
        secret_in_command = redact_command(sys.argv) != sys.argv
        return wandb.Settings(
            silent=True,
            console="off",  # train.log has the output; wandb's capture would interfere with the live display
            disable_code=True,
            x_disable_meta=secret_in_command,
        )

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """See :meth:`Tracker.log`. After a resume, steps that wandb already has are not overwritten."""
        if self._run is not None:
            self._run.log(panels(metrics), step=step)

    def artifact(self, path: Path, name: str, kind: str) -> None:
        """See :meth:`Tracker.artifact`."""
        if self._run is None or not self.kinds.get(kind) or not path.exists():
            return
        wandb = library("wandb")
        found = wandb.Artifact(name=_artifact_name(name), type="model", metadata={"kind": kind})
        (found.add_dir if path.is_dir() else found.add_file)(str(path))
        self._run.log_artifact(found)

    def finish(self, exit_code: int = 0) -> None:
        """See :meth:`Tracker.finish`. Without it the next job of a sweep would write into this run."""
        if self._run is not None:
            run, self._run = self._run, None
            run.finish(exit_code=exit_code)


def _artifact_name(name: str) -> str:
    """The name with only letters, digits, ``-``, ``_`` and ``.``, as wandb requires."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name)[:128] or "model"
