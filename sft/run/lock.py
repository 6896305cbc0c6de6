"""One writer per run directory: a second run is refused with the holder's name; the lock of a killed run is taken over.

The kernel's lock (flock) decides, because it is released whenever its process ends. The text in the file only names
the holder. Forked children (data workers) close their copy; otherwise an orphan would keep the directory locked after
the run itself was killed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sft.config.errors import UserError
from sft.config.rank import is_main_process
from sft.run.disk.errors import storage_errors
from sft.run.record import now
from sft.system.processes import alive

log = logging.getLogger(__name__)

_held: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


class RunLock:
    """The lock of a run directory, as a context manager.

    Args:
        directory: the run directory; created if missing.
        main: whether this process locks; None asks the environment (rank 0 of a torchrun job locks for all).
        patience: how long to wait for the holder, in seconds: a process that was just killed may still be exiting.

    Raises:
        UserError: a live process holds it; the message names its process id, host and start.
    """

    def __init__(self, directory: str | os.PathLike[str], *, main: bool | None = None, patience: float = 1.0) -> None:
        self.patience = patience
        self.path = Path(directory) / ".lock"
        self.main = is_main_process() if main is None else main
        self.descriptor: int | None = None
        self.owner = 0

    def acquire(self) -> Self:
        """Take the lock. Raises UserError naming the holder."""
        if not self.main or self.descriptor is not None:
            return self
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.descriptor = self._open_locked()
            self.owner = os.getpid()
            _held.add(self.descriptor)
            before = _read(self.descriptor)
            if before:
                log.info("took over the lock of %s, left by a dead run (%s)", self.path.parent, _who(before))
            content = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now()})
            os.truncate(self.descriptor, 0)
            os.pwrite(self.descriptor, content.encode(), 0)
        return self

    def release(self) -> None:
        """Release the lock and remove its file. Does nothing where it is not held, or in a forked child."""
        if self.descriptor is None or self.owner != os.getpid():
            return
        # while still locked: a waiting process then sees another file and tries again
        self.path.unlink(missing_ok=True)
        _held.discard(self.descriptor)
        os.close(self.descriptor)
        self.descriptor = None

    def _open_locked(self) -> int:
        deadline = time.monotonic() + self.patience
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _read(descriptor)
                os.close(descriptor)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    if time.monotonic() > deadline:
                        raise self._refusal(holder) from None
                    time.sleep(0.05)
                    continue
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                return self._without_flock(holder)
            if _is_same_file(descriptor, self.path):
                return descriptor
            os.close(descriptor)  # the holder removed it between our open and our lock

    def _without_flock(self, holder: dict[str, Any]) -> int:
        """Without file locks the text decides: refuse if the holder is on another host, or alive on this one."""
        pid = holder.get("pid")
        if holder and (holder.get("host") != socket.gethostname() or (isinstance(pid, int) and alive(pid))):
            raise self._refusal(holder)
        log.warning("%s: this file system has no locks; a second run at the same moment may go unnoticed", self.path)
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def _refusal(self, holder: dict[str, Any]) -> UserError:
        return UserError(
            f"another run is writing this directory ({_who(holder)})",
            where=str(self.path.parent),
            remedy="wait for it, stop it, or choose another directory: hydra.run.dir=DIR",
        )

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def holder(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The current writer of a run directory (pid, host, since), or None; read-only."""
    path = Path(directory) / ".lock"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return _read(descriptor) if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    finally:
        os.close(descriptor)
    return None


def _read(descriptor: int) -> dict[str, Any]:
    """The content of the file; {} when empty or incomplete. Waits a little for a holder that has not written yet."""
    for _ in range(5):
        try:
            value = json.loads(os.pread(descriptor, 4096, 0) or b"null")
            return value if isinstance(value, dict) else {}
        except ValueError:
            time.sleep(0.01)
    return {}


def _who(holder: dict[str, Any]) -> str:
    if not holder:
        return "an unknown process"
    return f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
