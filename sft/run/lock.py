"""One writer a run directory: a second run is told who holds it; what a killed run left behind is taken over.

The kernel's lock (flock) is the authority, for it goes when its process goes, however that ends. The text in the file
only says who holds it. Forked children (data workers) close their copy, or an orphan among them would keep the
directory locked after the run itself was killed.
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
from sft.config.rank import is_main
from sft.run.disk.errors import storage
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
        directory: the run directory; it is made if missing.
        main: whether this process locks; None asks the environment (rank 0 of a torchrun job does, the others share).
        patience: how long to wait for the holder, in seconds: a process that was killed just now may still be ending.

    Raises:
        UserError: a live process holds it; the message names its process id, host and start.
    """

    def __init__(self, directory: str | os.PathLike[str], *, main: bool | None = None, patience: float = 1.0) -> None:
        self.patience = patience
        self.path = Path(directory) / ".lock"
        self.main = is_main() if main is None else main
        self.descriptor: int | None = None
        self.owner = 0

    def acquire(self) -> Self:
        """Take the lock, or say who has it."""
        if not self.main or self.descriptor is not None:
            return self
        with storage(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.descriptor = self._open_locked()
            self.owner = os.getpid()
            _held.add(self.descriptor)
            before = _read(self.descriptor)
            if before:
                log.info("took over the lock of %s, left by a run that is gone (%s)", self.path.parent, _who(before))
            content = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now()})
            os.truncate(self.descriptor, 0)
            os.pwrite(self.descriptor, content.encode(), 0)
        return self

    def release(self) -> None:
        """Give the lock back and remove its file. Nothing where it is not held, and nothing in a forked child."""
        if self.descriptor is None or self.owner != os.getpid():
            return
        self.path.unlink(missing_ok=True)  # while still locked: whoever waits sees another file and tries again
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
            os.close(descriptor)  # its holder removed it between our open and our lock

    def _without_flock(self, holder: dict[str, Any]) -> int:
        """On file systems without locks the text decides: a holder on another host, or alive on this one, is refused."""
        pid = holder.get("pid")
        if holder and (holder.get("host") != socket.gethostname() or (isinstance(pid, int) and alive(pid))):
            raise self._refusal(holder)
        log.warning("%s: this file system knows no locks; a second run at the same moment may go unnoticed", self.path)
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
    """Who writes a run directory now (pid, host, since), or None; takes nothing and changes nothing."""
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
    """What the file says; {} when empty or torn. A holder that has just locked may not have written yet: wait a little."""
    for _ in range(5):
        try:
            value = json.loads(os.pread(descriptor, 4096, 0) or b"null")
            return value if isinstance(value, dict) else {}
        except ValueError:
            time.sleep(0.01)
    return {}


def _who(holder: dict[str, Any]) -> str:
    if not holder:
        return "a process that has not said its name"
    return f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
