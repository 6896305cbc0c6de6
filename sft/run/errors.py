"""A full disk, a missing permission, a read-only file system: said in one line, with what can be done."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft.config.errors import UserError

_REMEDIES = {
    errno.ENOSPC: (
        "no space is left on the disk",
        "free some space or lower trainer.save_total_limit, then start the same command again",
    ),
    errno.EDQUOT: (
        "the disk quota is used up",
        "free some space or lower trainer.save_total_limit, then start the same command again",
    ),
    errno.EACCES: ("permission denied", "choose a directory you may write: hydra.run.dir=DIR"),
    errno.EPERM: ("permission denied", "choose a directory you may write: hydra.run.dir=DIR"),
    errno.EROFS: ("the file system is read-only", "choose a directory you may write: hydra.run.dir=DIR"),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "choose a shorter one: hydra.run.dir=DIR"),
    errno.ENOTDIR: ("a part of the path is a file, not a directory", "choose another directory: hydra.run.dir=DIR"),
    errno.EEXIST: ("there is something else of that name", "choose another directory: hydra.run.dir=DIR"),
    errno.ELOOP: ("a link in the path leads to itself", "choose another directory: hydra.run.dir=DIR"),
    errno.EFBIG: (
        "the file is larger than the file system or the limit (ulimit -f) allows",
        "raise the limit or write elsewhere",
    ),
}


class StorageError(UserError):
    """The run directory cannot be written."""


# safetensors and torch wrap the system's error in one of their own and keep its text alone.
_WRAPPED = re.compile(
    r"os error 28|No space left on device|os error 122|Disk quota exceeded|PytorchStreamWriter failed writing",
    re.IGNORECASE,
)


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into a :class:`StorageError` that names the path; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        what, remedy = _REMEDIES[error.errno]
        raise StorageError(f"cannot write: {what}", where=str(error.filename or path), remedy=remedy) from error
    except Exception as error:
        if isinstance(error, UserError) or not _WRAPPED.search(str(error)):
            raise
        what, remedy = _REMEDIES[errno.ENOSPC]
        raise StorageError(f"cannot write: {what} ({error})", where=str(path), remedy=remedy) from error
