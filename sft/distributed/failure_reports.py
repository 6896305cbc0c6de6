"""What the processes of a run tell each other at their end, in the store that torchrun keeps for them (MASTER_ADDR)."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import traceback
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from sft.config.errors import Interrupted, RunFailed, UserError
from sft.config.rank import rank

TIMEOUT = 25.0  # seconds for the store to answer

_number = 0  # of the run within this process
_client: Any = None
_lock = threading.Lock()


@dataclass(frozen=True)
class Note:
    """What a process says of its end.

    Attributes:
        rank: whose.
        text: what a user is told.
        code: the exit code.
        trace: its traceback, for train.log.
    """

    rank: int
    text: str
    code: int
    trace: str = ""

    @property
    def error(self) -> Exception:
        """As the other processes raise it."""
        text = f"[rank {self.rank}] {self.text}" if self.rank > 0 else self.text
        if self.code > 128:
            return Interrupted(self.text, self.code)
        return UserError(text) if self.code == 2 else RunFailed(text)


def exit_code(error: BaseException) -> int:
    """As the doors leave."""
    if isinstance(error, Interrupted):
        return error.code
    return 2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else 1


def begin() -> None:
    """Another run within this process: the notes of the one before are no concern of it."""
    global _number
    _number += 1  # every process begins as many


def post(error: BaseException) -> Note | None:
    """Leave a note unless another process has; gives the one that stands there, None where no store can be had."""
    note = Note(rank(), text_of(error), exit_code(error), "".join(traceback.format_exception(error)))
    with contextlib.suppress(Exception):
        return _note(_store().compare_set(_key("note"), "", json.dumps(asdict(note))))
    return None


def read() -> Note | None:
    """The note that stands there."""
    store = _store()
    return _note(store.get(_key("note"))) if store.check([_key("note")]) else None


def said() -> None:
    """Rank 0 has said how the run ended: the others may leave."""
    with contextlib.suppress(Exception):
        _store().set(_key("said"), "1")


def is_said() -> bool:
    """Whether rank 0 has said it."""
    with contextlib.suppress(Exception):
        return bool(_store().check([_key("said")]))
    return False


def text_of(error: BaseException) -> str:
    """What a user is told."""
    known = isinstance(error, UserError | RunFailed | Interrupted)
    return str(error) if known else f"{type(error).__name__}: {error}"


def _store() -> Any:
    """A connection of our own to torchrun's store."""
    global _client
    with _lock:
        if _client is None:
            from torch.distributed import TCPStore

            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            _client = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=TIMEOUT))
        return _client


def _key(name: str) -> str:
    """By torchrun's restart: the notes of an earlier start are no concern of this one."""
    return f"sft/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_number}/{name}"


def _note(stored: bytes) -> Note:
    return Note(**json.loads(stored))
