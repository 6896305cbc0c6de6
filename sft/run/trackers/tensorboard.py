"""TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.run.directory import RunDirectory
from sft.run.jsonable import dumps
from sft.run.trackers.base import Tracker, library, log, panels


class TensorboardTracker(Tracker):
    """Writes TensorBoard's event files. Artifacts are not stored, because TensorBoard has no notion of them.

    Args:
        log_dir: where to; None is ``tensorboard/`` in the run directory. With a directory of your own each run gets a
            folder of its name in it.
        flush_secs: how often the file is flushed, in seconds.
    """

    requires = ("tensorboard", "trackers")

    def __init__(self, log_dir: str | None = None, flush_secs: int = 30) -> None:
        self.log_dir, self.flush_secs = log_dir, flush_secs
        self._open: tuple[Any, Path, str] | None = None
        self._writer: Any = None

    def start(self, run: RunDirectory, config: Mapping[str, Any], name: str, group: str | None = None) -> None:
        """See :meth:`Tracker.start`."""
        tensorboard = library("torch.utils.tensorboard", "tensorboard")
        where = run.path / "tensorboard" if self.log_dir is None else Path(self.log_dir, *filter(None, (group, name)))
        text = "".join(f"    {line}\n" for line in dumps(config).splitlines())  # indented, so that it is shown verbatim
        self._open = (tensorboard.SummaryWriter, where, text)
        log.info("tensorboard: `tensorboard --logdir %s`", os.path.relpath(where))

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """See :meth:`Tracker.log`."""
        if self._open is None:
            return
        if self._writer is None:
            writer, where, text = self._open
            # Hides what an interrupted run logged from this step on, because it is logged again.
            purge = step if where.is_dir() and any(where.iterdir()) else None
            self._writer = writer(log_dir=str(where), flush_secs=self.flush_secs, purge_step=purge)
            if purge is None:
                self._writer.add_text("config", text, 0)
        for key, value in panels(metrics).items():
            self._writer.add_scalar(key, value, step)

    def finish(self, exit_code: int = 0) -> None:
        """See :meth:`Tracker.finish`."""
        writer, self._writer, self._open = self._writer, None, None
        if writer is not None:
            writer.close()
