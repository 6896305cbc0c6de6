"""Checkpoints that are complete or absent.

One is written under a temporary name, flushed, given a manifest with the checksum of each of its files, and renamed.
On reading, a checkpoint that does not match its manifest is skipped in favour of the previous one.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft.run.disk import atomic
from sft.run.disk.errors import check_free_space, storage_errors
from sft.run.manifest import complete, problem, write_manifest

log = logging.getLogger(__name__)

_NAME = re.compile(r"^checkpoint-(\d+)$")


def name(step: int) -> str:
    """``checkpoint-<step>``, the directory's name."""
    return f"checkpoint-{step}"


def step_of(checkpoint: str | os.PathLike[str]) -> int | None:
    """The step in a checkpoint's directory name, None for any other name."""
    match = _NAME.match(Path(checkpoint).name)
    return int(match[1]) if match else None


def listed(checkpoints: Path) -> list[Path]:
    """All directories named checkpoint-<step>, by step, oldest first, whether complete or damaged."""
    if not checkpoints.is_dir():
        return []
    found = [(step, path) for path in checkpoints.iterdir() if (step := step_of(path)) is not None and path.is_dir()]
    return [path for _, path in sorted(found)]


# -- writing -----------------------------------------------------------------------------------------------------------


def begin(checkpoints: Path, step: int) -> Path:
    """An empty temporary directory for the checkpoint of this step. In a distributed run rank 0 calls it."""
    temporary = checkpoints / f"{atomic.TEMPORARY}{name(step)}"
    with storage_errors(temporary):
        atomic.remove_directory(temporary)
        temporary.mkdir(parents=True)
    return temporary


def commit(temporary: Path, *, extra: dict[str, Any] | None = None) -> Path:
    """Give a temporary checkpoint its manifest and its name. In a distributed run rank 0 calls it, after all have written.

    Args:
        extra: facts to keep in the manifest (JSON values), such as the fingerprint of what was trained.

    Returns:
        the checkpoint's directory.

    Raises:
        StorageError: the disk is full, or the location is not writable. The checkpoints before are as they were.
    """
    final = temporary.with_name(temporary.name.removeprefix(atomic.TEMPORARY))
    with storage_errors(temporary):
        write_manifest(temporary, {**(extra or {}), "step": step_of(final)})
        atomic.fsync_tree(temporary)
        atomic.swap_directory(temporary, final)
    return final


def abandon(temporary: Path) -> None:
    """Remove a temporary checkpoint that will not be finished."""
    shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def writing(
    checkpoints: Path,
    step: int,
    *,
    main: bool = True,
    barrier: Callable[[], object] = lambda: None,
    needed: int | None = None,
) -> Iterator[Path]:
    """A complete save: a temporary directory to write into, which becomes checkpoint-<step> when the block succeeds.

    Args:
        main: whether this process opens and closes it (rank 0); the others only write into it.
        barrier: waits for all processes; called after the directory is made and before it is closed.
        needed: bytes to be written, if known; free disk space is checked first.

    Raises:
        StorageError: there is not enough disk space. Earlier checkpoints are unchanged.
    """
    if main and needed is not None:
        check_free_space(checkpoints / name(step), needed)
    temporary = begin(checkpoints, step) if main else checkpoints / f"{atomic.TEMPORARY}{name(step)}"
    barrier()
    try:
        with storage_errors(temporary, needed):
            yield temporary
    except BaseException:
        if main:
            abandon(temporary)
        raise
    barrier()
    if main:
        commit(temporary)
    barrier()


# -- reading -----------------------------------------------------------------------------------------------------------


def latest_good(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint; damaged ones are skipped with a warning. None where there is none."""
    for checkpoint in reversed(listed(checkpoints)):
        reason = problem(checkpoint)
        if reason is None:
            return checkpoint
        log.warning("%s is skipped: %s", checkpoint.name, reason)
    return None


# -- keeping order -----------------------------------------------------------------------------------------------------


def recover(checkpoints: Path) -> None:
    """Clean up after a kill: finish an interrupted rename, remove partially written and partially deleted directories.

    To be called by the process that holds the run's lock, before it looks for a checkpoint.
    """
    if not checkpoints.is_dir():
        return
    with storage_errors(checkpoints):
        for temporary in sorted(checkpoints.glob(f"{atomic.TEMPORARY}*"), key=_new_before_old):
            final = checkpoints / temporary.name.removeprefix(atomic.TEMPORARY).removeprefix("old-")
            if step_of(final) is not None and not final.exists() and complete(temporary):
                log.info("%s was complete but not yet renamed; renamed it now", final.name)
                os.rename(temporary, final)
            elif temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink()


def prune(checkpoints: Path, limit: int | None, keep: Iterable[str | os.PathLike[str]] = ()) -> list[Path]:
    """Delete the oldest checkpoints until ``limit`` are left. Never the newest complete one, never those in ``keep``.

    Args:
        limit: how many to leave; None or 0 leaves all.
        keep: checkpoints to keep in any case, such as the best one; they count towards the limit.

    Returns:
        the deleted directories. Damaged ones are deleted first.
    """
    if not limit or limit < 0:
        return []
    found = listed(checkpoints)
    whole = [path for path in found if complete(path, deep=False)]
    if not whole:
        return []
    protected = {whole[-1].name} | {Path(path).name for path in keep}
    torn = [path for path in found if path not in whole]
    candidates = [path for path in torn + whole if path.name not in protected]
    doomed = candidates[: max(0, len(found) - max(limit, 1))]
    with storage_errors(checkpoints):
        for path in doomed:
            atomic.remove_directory(path)
    return doomed


def _new_before_old(path: Path) -> tuple[bool, str]:
    return (path.name.startswith(f"{atomic.TEMPORARY}old-"), path.name)
