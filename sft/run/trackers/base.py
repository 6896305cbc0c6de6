"""The interface of trackers, and a wrapper that keeps a tracker's failures from stopping a run."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from sft.config.errors import UserError
from sft.run.directory import RunDirectory
from sft.run.jsonable import plain
from sft.safety.secrets import redact_tree

log = logging.getLogger(__name__)


class Tracker:
    """Where metrics go besides the run directory. The base class does nothing: it is ``tracker=none``.

    Call ``start``, then ``log`` and ``artifact`` any number of times, then ``finish``; then it can be started for
    another run. :func:`tracking` calls the first and the last. Only the main process of a distributed run has a real
    one.

    Attributes:
        requires: the module that it imports and the extra of sft that brings it (None: no extra does); None: no module.
            Read from source before a run begins, so a literal (see `sft.config.source_code.class_attributes`).
    """

    requires: ClassVar[tuple[str, str | None] | None] = None

    def start(self, run: RunDirectory, config: Mapping[str, Any], name: str, group: str | None = None) -> None:
        """Open the run at the tracker; a run directory that was tracked before continues its run there.

        Args:
            run: the run directory, which stores the tracker's run id.
            config: the resolved config; secrets in it are not sent.
            name: the run's name.
            group: the group of a sweep's jobs.

        Raises:
            UserError: the library is missing, or the tracker is unreachable or refuses the login.
        """

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Send the numeric metrics; ``step`` counts optimizer steps."""

    def artifact(self, path: Path, name: str, kind: str) -> None:
        """Store a file or directory with the run, if the config asks for this kind ("adapter", "model" or "merged")."""

    def finish(self, exit_code: int = 0) -> None:
        """Close the run and wait until everything is sent or written. Does nothing where none is open."""


def without_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as plain values without secrets, for sending."""
    return redact_tree(plain(config))


def panels(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the metrics, as ``train/loss`` and ``eval/loss``, which trackers draw in two panels."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        if "/" in key:
            found[key] = value
        elif key.startswith("eval_"):
            found[f"eval/{key.removeprefix('eval_')}"] = value
        else:
            found[f"train/{key.removeprefix('train_')}"] = value
    return found


def library(module: str, package: str | None = None) -> Any:
    """Import a tracker's library.

    Raises:
        UserError: it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module
        raise UserError(
            f"{package} is not installed or incomplete ({error})",
            where="tracker",
            remedy=f"pip install {package}, or tracker=none",
        ) from error


def remembered(run: RunDirectory, tracker: str) -> str | None:
    """The tracker's id of this run from its first start, None for a new run."""
    found = run.read_json(run.tracker_json, {})
    return found.get(tracker) if isinstance(found, dict) else None


def remember(run: RunDirectory, tracker: str, identity: str) -> None:
    """Store the tracker's id of this run in the run directory, so that a resumed run continues under it."""
    found = run.read_json(run.tracker_json, {})
    run.write_json(run.tracker_json, {**(found if isinstance(found, dict) else {}), tracker: identity})


@contextmanager
def tracking(
    tracker: Tracker | None, run: RunDirectory, config: Mapping[str, Any], name: str, group: str | None = None
) -> Iterator[Tracker]:
    """A started tracker that is finished whenever the block ends; does nothing on ranks other than 0.

    Errors of the tracker after the start (no network, no space) are logged and do not stop the run.
    """
    active = tracker if tracker is not None and run.main else Tracker()
    active.start(run, config, name, group)
    exit_code = 1
    try:
        yield Guarded(active)
        exit_code = 0
    finally:
        Guarded(active).finish(exit_code)


class Guarded(Tracker):
    """A started tracker whose errors are logged, each kind once, and otherwise ignored."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._failed: set[str] = set()

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """See :meth:`Tracker.log`."""
        self._try("log", metrics, step)

    def artifact(self, path: Path, name: str, kind: str) -> None:
        """See :meth:`Tracker.artifact`."""
        self._try("artifact", path, name, kind)

    def finish(self, exit_code: int = 0) -> None:
        """See :meth:`Tracker.finish`."""
        self._try("finish", exit_code)

    def _try(self, what: str, *arguments: Any) -> None:
        try:
            getattr(self.tracker, what)(*arguments)
        except Exception as error:
            known = f"{what} {type(error).__name__}"
            level = logging.DEBUG if known in self._failed else logging.WARNING
            self._failed.add(known)
            log.log(
                level,
                "%s could not %s: %s; training continues",
                type(self.tracker).__name__,
                what,
                error,
                exc_info=True,
            )
