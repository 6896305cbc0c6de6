"""How many processes end together: the first error of any is everyone's, and rank 0 says it once.

Whoever fails leaves a note where torchrun keeps what its processes tell each other (the store at MASTER_ADDR), closes
its connections and waits until rank 0 has said the reason: torchrun ends all processes as soon as one of them is gone,
and rank 0 could not finish its sentence. Each process looks for a note beside its work, for one that waits in a GPU's
communication notices nothing else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn, Self

from sft.config.errors import Interrupted, RunFailed
from sft.config.rank import is_main, rank
from sft.distributed import failure_reports as notes
from sft.distributed.failure_reports import Note, exit_code, text_of
from sft.distributed.ranks import Ranks, machine
from sft.run.log import FILE_ONLY
from sft.safety.secrets import redact
from sft.system.processes import alive

log = logging.getLogger(__name__)

LOOKS = 0.5  # seconds between two looks
GRACE = 10.0  # for rank 0 to come to its own end after another's note, before it is made to
SILENCE = 3.0  # for a note to arrive after a connection broke
LAST = 3.0  # after rank 0's last word, for it to be the first that torchrun sees go
WAITS = notes.TIMEOUT  # for rank 0's last word; torchrun itself waits 30 seconds
_BROKEN = re.compile(
    r"closed by peer|connection (?:was )?(?:reset|refused|closed)|broken pipe|gloo|nccl|processgroup|socket", re.I
)

_met_first = False  # whether this process's error in training was the first of all


class Ended(RunFailed):
    """Another process of the run ended and said no reason: it was killed."""


class Ending:
    """This process's part in a common end, for the time of the block; does nothing where the process is alone.

    Args:
        ranks: the processes.
        at_end: called on rank 0 with another's error where this process cannot come to its own end.
    """

    def __init__(self, ranks: Ranks, at_end: Callable[[Exception], None]) -> None:
        self.ranks, self.at_end = ranks, at_end
        self.done = threading.Event()

    def __enter__(self) -> Self:
        global _met_first
        if self.ranks.many:
            _met_first = False
            notes.begin()
            threading.Thread(target=self._look, name="ranks", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()

    def reason(self, error: BaseException) -> BaseException:
        """Leave a note of an error, and give the first one of all processes: this, or what another met before.

        An error that only says that a connection broke is never the reason: another process is gone.
        """
        broken = _is_broken(error)
        deadline = time.monotonic() + SILENCE
        while broken and time.monotonic() < deadline:
            note = notes.read()
            if note is not None:
                return self._other(note, error)
            time.sleep(0.1)
        if broken:
            error = _killed(self._gone())
        note = notes.post(error)
        return error if note is None or note.rank == rank() else self._other(note, error)

    def _other(self, note: Note, error: BaseException) -> BaseException:
        """Another's error as this process raises it."""
        if note.rank == rank() or note.text == text_of(error):  # all met the same
            return error
        log.error("rank %d ended first:\n%s", note.rank, note.trace, extra=FILE_ONLY)
        return note.error

    @contextlib.contextmanager
    def common(self) -> Iterator[None]:
        """The block's error is that of the process which failed first."""
        try:
            yield
        except BaseException as error:
            if not self.ranks.many:
                raise
            first = self.reason(error)
            if first is error:
                global _met_first
                _met_first = True
                raise
            raise first from error

    def _gone(self) -> str:
        """The processes of this machine that are no more, by rank; "" where all are there."""
        here = machine()
        return ", ".join(
            f"rank {index} (process {pid})"
            for index, (host, pid) in enumerate(self.ranks.processes)
            if host == here and not alive(pid)
        )

    def _look(self) -> None:
        """The thread: at a note of another's, or without another, wait for this process to end by itself; then end it."""
        with contextlib.suppress(Exception):  # the store is gone, and so is the run
            while not self.done.wait(LOOKS):
                note = notes.read()
                if note is None and (gone := self._gone()):
                    note = Note(-1, str(_killed(gone)), 1)
                if note is None or note.rank == rank():
                    continue
                if self.done.wait(GRACE if is_main() else GRACE + WAITS):
                    return
                if is_main():
                    self.at_end(note.error)
                    sys.stderr.write(f"error: {note.error}\n")
                    sys.stderr.flush()
                    notes.said()
                os._exit(note.code)


def leave_together(error: BaseException, say: Callable[[], NoReturn]) -> NoReturn:
    """How a door leaves where several processes do: rank 0 says why, the others wait for that.

    Args:
        error: this process's.
        say: prints it and leaves with its exit code.
    """
    notes.post(error)
    _tell_torchrun(error)
    if not is_main():
        _after_main(error)
        sys.stderr.write(f"[rank {rank()}] ")
    try:
        say()
    finally:
        sys.stderr.flush()
        notes.said()


def _after_main(error: BaseException) -> None:
    """Leave after rank 0 has spoken. Returns where it stays silent.

    Whoever met in training what the others did not leaves at once: its closed connections are what tells them.
    """
    if _met_first:
        os._exit(exit_code(error))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(exit_code(error)))  # torchrun ends what is left
    deadline = time.monotonic() + WAITS
    while time.monotonic() < deadline:
        if notes.is_said():
            time.sleep(LAST)
            os._exit(exit_code(error))
        time.sleep(0.1)


def _tell_torchrun(error: BaseException) -> None:
    """Leave the reason where torchrun looks for it: it is the last thing that it prints."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and not isinstance(error, Interrupted | KeyboardInterrupt):
        about = {"py_callstack": redact(text_of(error)), "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": about["py_callstack"], "extraInfo": about}}, file)


def _killed(who: str) -> Ended:
    return Ended(f"{who or 'another process of this run'} exited without an error report: killed, or out of memory")


def _is_broken(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and bool(_BROKEN.search(str(error)))
