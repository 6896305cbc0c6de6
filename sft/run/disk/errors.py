"""A full disk, a missing permission, a read-only file system: errors in one line with a remedy."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft.config.errors import UserError
from sft.config.text import byte_size

_REMEDIES = {
    errno.ENOSPC: (
        "no space is left on the disk",
        "free some space or lower trainer.save_total_limit, then start the same command again: it resumes from its last "
        "checkpoint",
    ),
    errno.EDQUOT: (
        "the disk quota is used up",
        "free some space or lower trainer.save_total_limit, then start the same command again: it resumes from its last "
        "checkpoint",
    ),
    errno.EACCES: ("permission denied", "choose a directory you may write: hydra.run.dir=DIR"),
    errno.EPERM: ("permission denied", "choose a directory you may write: hydra.run.dir=DIR"),
    errno.EROFS: ("the file system is read-only", "choose a directory you may write: hydra.run.dir=DIR"),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "choose a shorter one: hydra.run.dir=DIR"),
    errno.ENOTDIR: ("a part of the path is a file, not a directory", "choose another directory: hydra.run.dir=DIR"),
    errno.EEXIST: ("something else has that name", "choose another directory: hydra.run.dir=DIR"),
    errno.ELOOP: ("a link in the path leads to itself", "choose another directory: hydra.run.dir=DIR"),
    errno.EFBIG: (
        "the file is larger than the file system or the limit (ulimit -f) allows",
        "raise the limit or write elsewhere",
    ),
}


class StorageError(UserError):
    """The run directory cannot be written."""


# safetensors and torch wrap the system's error in their own and keep only its text.
_WRAPPED = re.compile(
    r"os error 28|No space left on device|os error 122|Disk quota exceeded|PytorchStreamWriter failed writing",
    re.IGNORECASE,
)


@contextmanager
def storage_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn file system errors into a :class:`StorageError` that names the path; other errors pass.

    Args:
        path: the path that is written.
        needed: its size in bytes, if known.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        what, remedy = _REMEDIES[error.errno]
        where = str(error.filename or path)
        raise StorageError(
            f"cannot write: {what}{_sizes(error.errno, path, needed)}", where=where, remedy=remedy
        ) from error
    except Exception as error:
        if isinstance(error, UserError) or not _WRAPPED.search(str(error)):
            raise
        what, remedy = _REMEDIES[errno.ENOSPC]
        sizes = _sizes(errno.ENOSPC, path, needed) or f" ({error})"
        raise StorageError(f"cannot write: {what}{sizes}", where=str(path), remedy=remedy) from error


def check_free_space(path: Path, needed: int) -> None:
    """Check that there is enough free disk space for a write.

    Args:
        path: the path to be written; it need not exist.
        needed: its size in bytes.

    Raises:
        StorageError: less than that is free. Quotas are not checked.
    """
    free = _free(path)
    if free is not None and free < needed:
        what, remedy = _REMEDIES[errno.ENOSPC]
        what = f"cannot write: too little space on the disk{_sizes(errno.ENOSPC, path, needed)}"
        raise StorageError(what, where=str(path), remedy=remedy)


def _sizes(number: int, path: Path, needed: int | None) -> str:
    if needed is None or number not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    free = _free(path) if number == errno.ENOSPC else None
    return f": {byte_size(needed)} needed" + (f", {byte_size(free)} free" if free is not None else "")


def _free(path: Path) -> int | None:
    there = next((each for each in (path, *path.parents) if each.exists()), None)
    try:
        return shutil.disk_usage(there).free if there else None
    except OSError:
        return None
