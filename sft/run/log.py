"""Logging of one run: everything to train.log, a short form to stderr that does not garble progress bars.

Some libraries do not propagate to the root logger (transformers, wandb) or print through their own handlers
(transformers, datasets, huggingface_hub). While a :class:`RunLog` is open its handlers replace those; closing it
restores them, so each job of a sweep has its own log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from sft.config.errors import UserError
from sft.config.rank import is_main_process
from sft.run.directory import RunDirectory
from sft.run.disk.errors import storage_errors
from sft.run.log_lines import FileFormatter, ShortFormatter, is_terminal, worth_showing

FILE_ONLY = {"file_only": True}
"""``log.info(…, extra=FILE_ONLY)`` goes to train.log and not to stderr."""

# Libraries whose info messages belong in train.log; most of them are silent below "warning" by default.
_INFORMATIVE = ("transformers", "datasets", "peft", "accelerate", "huggingface_hub", "bitsandbytes", "trl")
# These do not propagate to the root logger, so handlers are attached to them before they are imported.
_CLOSED = ("transformers", "wandb")
_open_logs: list[RunLog] = []
_main_process_only = False  # whether all ranks do the same now, so that the others' warnings only repeat rank 0's


class RunLog:
    """The log of one run, as a context manager; an error that leaves the block is logged to train.log with its
    traceback.

    Args:
        run: the run directory; None logs to stderr only.
        progress_bars: whether the libraries' progress bars are drawn; None draws them only on a terminal.
    """

    def __init__(self, run: RunDirectory | None = None, *, progress_bars: bool | None = None) -> None:
        self.run = run
        self.progress_bars = progress_bars
        self.handlers: list[logging.Handler] = []
        self._undo: list[tuple[Any, ...]] = []
        self._seen: set[str] = set()

    def open(self) -> Self:
        """Attach the handlers; libraries that are imported later are adopted with their first message or by
        :meth:`adopt`."""
        if self.handlers:
            return self
        root = logging.getLogger()
        level = min(root.level or logging.INFO, logging.INFO)
        if self.run is not None and self.run.main:
            with storage_errors(self.run.train_log):
                self.run.create()
                file = _FileHandler(self.run.train_log, encoding="utf-8")
            file.setLevel(level)
            file.setFormatter(FileFormatter())
            self.handlers.append(file)
        stderr = _StderrHandler(self)
        stderr.setLevel(level if is_main_process() else logging.WARNING)
        self.handlers.append(stderr)
        self._set_level(root, level)
        self._undo.append(("warnings", getattr(logging, "_warnings_showwarning", None) is not None))
        logging.captureWarnings(True)
        _open_logs.append(self)
        self.adopt()
        return self

    def adopt(self) -> None:
        """Take over the loggers of the libraries imported so far: their messages to train.log, their output to
        stderr."""
        loggers = [item for item in list(logging.root.manager.loggerDict.values()) if isinstance(item, logging.Logger)]
        for logger in [logging.getLogger(), *loggers]:
            for handler in [handler for handler in logger.handlers if self._is_replaced(handler)]:
                logger.removeHandler(handler)
                self._undo.append(("handler", logger, handler))
            if logger is logging.root or not logger.propagate:
                self._attach(logger)
        for name in _CLOSED:
            self._attach(logging.getLogger(name))
        for name in _INFORMATIVE:
            if name in sys.modules:
                self._set_level(logging.getLogger(name), logging.INFO)
        self._hide_bars()

    def close(self) -> None:
        """Detach and close the handlers and restore the previous ones."""
        if not self.handlers:
            return
        for what, *rest in reversed(self._undo):
            if what == "attached":
                rest[0].removeHandler(rest[1])
            elif what == "handler":
                rest[0].addHandler(rest[1])
            elif what == "level":
                rest[0].setLevel(rest[1])
            elif what == "warnings":
                logging.captureWarnings(rest[0])
            elif what == "bars":
                rest[0]()
        for handler in self.handlers:
            handler.close()
        self._undo.clear()
        self._seen.clear()
        self.handlers = []
        _open_logs.remove(self)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, SystemExit):
            what = "refused" if isinstance(error, UserError) else "stopped by an error"
            logging.getLogger("sft").error("%s: %s", what, error, exc_info=error, extra=FILE_ONLY)
        self.close()

    # -- parts ---------------------------------------------------------------------------------------------------------
    def _attach(self, logger: logging.Logger) -> None:
        for handler in self.handlers:
            if handler not in logger.handlers:
                logger.addHandler(handler)
                self._undo.append(("attached", logger, handler))

    def _set_level(self, logger: logging.Logger, level: int) -> None:
        if logger.level != level:
            self._undo.append(("level", logger, logger.level))
            logger.setLevel(level)

    def _is_replaced(self, handler: logging.Handler) -> bool:
        """Whether a handler is replaced: plain terminal output and Hydra's own train.log; others were set on
        purpose."""
        if type(handler) is logging.FileHandler:
            return self.run is not None and handler.baseFilename == os.path.abspath(self.run.train_log)
        return type(handler) is logging.StreamHandler and handler.stream in (
            sys.stdout,
            sys.stderr,
            sys.__stdout__,
            sys.__stderr__,
        )

    def _hide_bars(self) -> None:
        wanted = is_terminal(sys.stderr) if self.progress_bars is None else self.progress_bars
        if wanted:
            return
        for name, off, on in (
            ("datasets", "disable_progress_bars", "enable_progress_bars"),
            ("huggingface_hub.utils", "disable_progress_bars", "enable_progress_bars"),
            ("transformers.utils.logging", "disable_progress_bar", "enable_progress_bar"),
        ):
            module = sys.modules.get(name)
            if module is not None and name not in self._seen and hasattr(module, off):
                self._seen.add(name)
                getattr(module, off)()
                self._undo.append(("bars", getattr(module, on)))

    def notice(self, record: logging.LogRecord) -> None:
        """Adopt the loggers again when a library logs for the first time; called with each record."""
        library = record.name.partition(".")[0]
        if f"logger {library}" not in self._seen:
            self._seen.add(f"logger {library}")
            self.adopt()


@contextlib.contextmanager
def main_process_logs_only() -> Iterator[None]:
    """Within the block ranks other than 0 show only errors, because they would only repeat the warnings."""
    with _set_main_process_only(True):
        yield


@contextlib.contextmanager
def all_processes_log() -> Iterator[None]:
    """For the time of the block, within one of `main_process_logs_only`, all ranks log their own warnings."""
    with _set_main_process_only(False):
        yield


@contextlib.contextmanager
def _set_main_process_only(value: bool) -> Iterator[None]:
    global _main_process_only
    before, _main_process_only = _main_process_only, value and not is_main_process()
    try:
        yield
    finally:
        _main_process_only = before


def adopt() -> None:
    """Let the open logs take over the loggers of newly imported libraries; called after the heavy imports."""
    for log in list(_open_logs):
        log.adopt()


class _FileHandler(logging.FileHandler):
    def emit(self, record: logging.LogRecord) -> None:
        if not _already(record, self):
            super().emit(record)


class _StderrHandler(logging.Handler):
    """Writes to the current sys.stderr, which a live display replaces while it is active."""

    def __init__(self, owner: RunLog) -> None:
        super().__init__()
        self.owner = owner
        self.setFormatter(ShortFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record that is worth showing and was not shown already."""
        self.owner.notice(record)
        if _main_process_only and record.levelno < logging.ERROR:
            return
        if _open_logs[-1:] != [self.owner] or getattr(record, "file_only", False) or not worth_showing(record):
            return
        if _already(record, self):
            return
        try:
            with _progress_bars_cleared():
                sys.stderr.write(self.format(record) + "\n")
                sys.stderr.flush()
        except Exception:  # logging must never end the run
            self.handleError(record)


def _already(record: logging.LogRecord, handler: logging.Handler) -> bool:
    """Whether this handler has already handled the record: attached to a library and to the root, it is called
    twice."""
    seen: set[int] = record.__dict__.setdefault("_sft_handled", set())
    if id(handler) in seen:
        return True
    seen.add(id(handler))
    return False


@contextlib.contextmanager
def _progress_bars_cleared() -> Iterator[None]:
    """Clear tqdm's bars while a line is written, and redraw them below it."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if tqdm is None or not getattr(tqdm, "_instances", None):
        yield
        return
    with tqdm.external_write_mode(file=sys.stderr):
        yield
