"""MLflow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.config.text import shortened
from sft.run.directory import RunDirectory
from sft.run.trackers.base import Tracker, library, log, panels, remember, remembered, without_secrets

# Parameters per call of log_params, and the length of a value, by MLflow's documentation of its REST API.
_PARAMS_AT_ONCE = 100
_LONGEST_VALUE = 500


class MlflowTracker(Tracker):
    """Logs to MLflow; each run directory is one MLflow run, also when it is resumed.

    Args:
        tracking_uri: a server's address, a directory or a database; None is MLflow's own choice (MLFLOW_TRACKING_URI).
        experiment: the experiment's name; it is made if missing.
        tags: labels and their values.
        log_adapter: keep the adapter (or the model of a full fine-tune) as an artifact.
        log_merged: keep the merged model as an artifact.
    """

    requires = ("mlflow", "trackers")

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str = "sft",
        tags: dict[str, str] | None = None,
        log_adapter: bool = False,
        log_merged: bool = False,
    ) -> None:
        self.tracking_uri, self.experiment, self.tags = tracking_uri, experiment, dict(tags or {})
        self.kinds = {"adapter": log_adapter, "model": log_adapter, "merged": log_merged}
        self._mlflow: Any = None

    def start(self, run: RunDirectory, config: Mapping[str, Any], name: str, group: str | None = None) -> None:
        """See :meth:`Tracker.start`."""
        mlflow = library("mlflow")
        known = remembered(run, "mlflow")
        tags = {**self.tags, **({"group": group} if group else {})}
        try:
            if self.tracking_uri:
                mlflow.set_tracking_uri(self.tracking_uri)
            mlflow.set_experiment(self.experiment)
            if mlflow.active_run() is not None:
                mlflow.end_run()
            active = mlflow.start_run(run_id=known, run_name=None if known else name, tags=tags or None)
            if known is None:
                for part in _batches(_flat(without_secrets(config))):
                    mlflow.log_params(part)
        except Exception as error:  # errors of MLflow, its HTTP client and its database
            raise UserError(
                f"mlflow did not start: {error}",
                where="tracker",
                remedy="check tracker.tracking_uri and MLFLOW_TRACKING_URI, or use tracker=none",
            ) from error
        self._mlflow = mlflow
        remember(run, "mlflow", active.info.run_id)
        log.info("mlflow: run %s at %s", active.info.run_id, mlflow.get_tracking_uri())

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """See :meth:`Tracker.log`."""
        if self._mlflow is not None:
            named = {re.sub(r"[^0-9A-Za-z_\-. :/]", "_", key): value for key, value in panels(metrics).items()}
            self._mlflow.log_metrics(named, step=step)

    def artifact(self, path: Path, name: str, kind: str) -> None:
        """See :meth:`Tracker.artifact`."""
        if self._mlflow is None or not self.kinds.get(kind) or not path.exists():
            return
        if path.is_dir():
            self._mlflow.log_artifacts(str(path), artifact_path=kind)
        else:
            self._mlflow.log_artifact(str(path), artifact_path=kind)

    def finish(self, exit_code: int = 0) -> None:
        """See :meth:`Tracker.finish`."""
        mlflow, self._mlflow = self._mlflow, None
        if mlflow is not None:
            mlflow.end_run(status="FINISHED" if exit_code == 0 else "FAILED")


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and the text of each value."""
    for key, value in config.items():
        key = re.sub(r"[^0-9A-Za-z_\-. :/]", "_", f"{prefix}{key}")
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{key}.")
        else:
            yield key, shortened(str(value), _LONGEST_VALUE)


def _batches(items: Iterator[tuple[str, str]]) -> Iterator[dict[str, str]]:
    found = list(items)
    for begin in range(0, len(found), _PARAMS_AT_ONCE):
        yield dict(found[begin : begin + _PARAMS_AT_ONCE])
