"""Failure reports that the processes of a run exchange through torchrun's store (at MASTER_ADDR)."""

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

TIMEOUT = 25.0  # seconds to wait for the store

_number = 0  # counts the runs of this process
_client: Any = None
_lock = threading.Lock()


@dataclass(frozen=True)
class FailureReport:
    """Why a process failed.

    Attributes:
        rank: of the process that failed.
        message: for the user.
        code: the exit code.
        traceback_text: for train.log.
    """

    rank: int
    message: str
    code: int
    traceback_text: str = ""

    @property
    def error(self) -> Exception:
        """The error that the other ranks raise."""
        message = f"[rank {self.rank}] {self.message}" if self.rank > 0 else self.message
        if self.code > 128:
            return Interrupted(self.message, self.code)
        return UserError(message) if self.code == 2 else RunFailed(message)


def exit_code(error: BaseException) -> int:
    """The exit code of a command for an error."""
    if isinstance(error, Interrupted):
        return error.code
    return 2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else 1


def begin() -> None:
    """Start another run in this process: reports of the previous one are ignored."""
    global _number
    _number += 1  # counted equally on all ranks


def post(error: BaseException) -> FailureReport | None:
    """Post a report unless another rank has posted one; return the posted one, None where the store is unreachable."""
    report = FailureReport(rank(), message_of(error), exit_code(error), "".join(traceback.format_exception(error)))
    with contextlib.suppress(Exception):
        return _report(_store().compare_set(_key("report"), "", json.dumps(asdict(report))))
    return None


def read() -> FailureReport | None:
    """The posted report, if there is one."""
    store = _store()
    return _report(store.get(_key("report"))) if store.check([_key("report")]) else None


def mark_reported() -> None:
    """Mark the error as reported by rank 0, so that the other ranks may exit."""
    with contextlib.suppress(Exception):
        _store().set(_key("reported"), "1")


def is_reported() -> bool:
    """Whether rank 0 has reported the error."""
    with contextlib.suppress(Exception):
        return bool(_store().check([_key("reported")]))
    return False


def message_of(error: BaseException) -> str:
    """The message of an error for the user."""
    known = isinstance(error, UserError | RunFailed | Interrupted)
    return str(error) if known else f"{type(error).__name__}: {error}"


def _store() -> Any:
    """A separate connection to torchrun's store."""
    global _client
    with _lock:
        if _client is None:
            from torch.distributed import TCPStore

            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            _client = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=TIMEOUT))
        return _client


def _key(name: str) -> str:
    """A key that includes torchrun's restart count, so that reports of an earlier start are ignored."""
    return f"sft/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_number}/{name}"


def _report(stored: bytes) -> FailureReport:
    return FailureReport(**json.loads(stored))
