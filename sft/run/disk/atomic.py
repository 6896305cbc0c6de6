"""Atomic files and directories: written under a temporary name, flushed to disk, renamed."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft.run.disk.errors import storage_errors
from sft.system.processes import alive

TEMPORARY = ".tmp-"


def fsync_path(path: Path) -> None:
    """Flush one file, or a directory's entries, to the disk; file systems that cannot are left alone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (22, 95):  # EINVAL, EOPNOTSUPP: some network file systems cannot flush a directory
            raise
    finally:
        os.close(descriptor)


def fsync_tree(directory: Path) -> None:
    """Flush every file below a directory, then the directories."""
    for parent, _, files in os.walk(directory, topdown=False):
        for name in files:
            fsync_path(Path(parent, name))
        fsync_path(Path(parent))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path next to ``path`` to write to; it replaces ``path`` when the block ends without an error.

    The suffix stays the same, for writers that choose a format by it. After an error the temporary file is removed and
    ``path`` is unchanged.

    Raises:
        StorageError: the disk is full, or the location is not writable.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            fsync_path(temporary)
            os.replace(temporary, path)
            fsync_path(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Like :func:`replacing` for a directory: an empty temporary one becomes ``path`` when the block ends without an
    error."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        remove_directory(temporary)
        temporary.mkdir()
        try:
            yield temporary
            fsync_tree(temporary)
            swap_directory(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _remove_abandoned(path: Path) -> None:
    """Remove what killed processes left of their attempts to write ``path``."""
    for found in path.parent.glob(f"{TEMPORARY}*-{glob.escape(path.name)}"):
        pid = found.name.removeprefix(TEMPORARY).removesuffix(f"-{path.name}")
        if pid.isdigit() and not alive(int(pid)):
            remove_directory(found)


def let_read(directory: Path) -> None:
    """Let everybody read a directory and its files: temporary ones, and those that safetensors writes, are the owner's."""
    directory.chmod(0o755)
    for path in directory.iterdir():
        path.chmod(0o644)


def swap_directory(new: Path, path: Path) -> None:
    """Replace ``path`` by the directory ``new``; an older ``path`` is renamed first and removed afterwards."""
    old = path.with_name(f"{TEMPORARY}old-{path.name}")
    remove_directory(old)
    if path.exists():
        os.rename(path, old)
    os.rename(new, path)
    fsync_path(path.parent)
    remove_directory(old)


def remove_directory(path: Path) -> None:
    """Remove a directory recursively, after renaming it, so that a kill cannot leave a partial one under its name.

    Of a link to a directory the link alone is removed.
    """
    if path.is_symlink():
        path.unlink()
    if not path.exists():
        return
    doomed = path if path.name.startswith(TEMPORARY) else path.with_name(f"{TEMPORARY}gone-{path.name}")
    if doomed != path:
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
    shutil.rmtree(doomed)
