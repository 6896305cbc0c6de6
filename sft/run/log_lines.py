"""The format of log lines on a terminal and in train.log, and which are worth showing."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from typing import Any

from sft.config.rank import is_main_process, rank
from sft.config.text import without_control_characters
from sft.safety.secrets import redact

_LONGEST = 300
_WARNING = re.compile(r": (?P<kind>\w*Warning): (?P<text>.*)")
_JOB = re.compile(r"job (?P<number>\d+)")
# import-time messages of libraries that the run may not even use
_BESIDE_THE_POINT = (("bitsandbytes", "Failed to load CPU gemm_4bit_forward"),)


class FileFormatter(logging.Formatter):
    """Time, level, logger and message, followed by the traceback."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The line with its traceback, without secrets and terminal control sequences."""
        return without_control_characters(redact(super().format(record)))


class ShortFormatter(logging.Formatter):
    """``12:34:56 message``, with the library's name and levels other than info, without traceback, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The short form, without secrets."""
        message = without_control_characters(redact(record.getMessage()))
        if record.name == "py.warnings":
            match = _WARNING.search(message)
            message = match["text"] if match else message
        library = record.name.partition(".")[0]
        if library not in ("sft", "root", "__main__", "py"):
            message = f"{library}: {_one_line(message)}"
        elif library == "py":
            message = _one_line(message)
        if record.levelno >= logging.WARNING:
            message = f"{_coloured(record)} {message}"
        if not is_main_process():
            message = f"[rank {rank()}] {message}"
        message = job_prefix() + message
        return f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {message}"


def job_prefix() -> str:
    """ "[3] " in the thread of job 3 of several that train together; "" anywhere else."""
    match = _JOB.fullmatch(threading.current_thread().name)
    return f"[{match['number']}] " if match else ""


def worth_showing(record: logging.LogRecord) -> bool:
    """Our records from info on, the libraries' from warning on, without warnings for developers."""
    if record.name == "py.warnings":
        match = _WARNING.search(record.getMessage())
        return match is None or match["kind"] not in (
            "DeprecationWarning",
            "FutureWarning",
            "PendingDeprecationWarning",
        )
    if any(record.name.startswith(library) and start in record.getMessage() for library, start in _BESIDE_THE_POINT):
        return False
    ours = record.name.partition(".")[0] in ("sft", "root", "__main__")
    return ours or record.levelno >= logging.WARNING


def _one_line(message: str) -> str:
    lines = message.strip().splitlines() or [""]
    short = lines[0][:_LONGEST]
    return short if short == message.strip() else f"{short} … (the rest is in train.log)"


def _coloured(record: logging.LogRecord) -> str:
    word = f"{record.levelname.lower()}:"
    if not is_terminal(sys.stderr) or os.environ.get("NO_COLOR"):
        return word
    return f"\x1b[{33 if record.levelno < logging.ERROR else 31}m{word}\x1b[0m"


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal; false for closed streams and other objects."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False
