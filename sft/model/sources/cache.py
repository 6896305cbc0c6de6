"""Models that sft creates itself (the embedded one, the tiny ones), each written once into a cache directory."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sft.config.errors import UserError
from sft.config.paths import cache_dir
from sft.run.disk.atomic import let_read

ABANDONED_AFTER = 3600.0  # seconds; an incomplete directory older than this was left by a killed process


def cached_model(name: str, build: Callable[[Path], None]) -> Path:
    """The cache directory `name`, created by `build(directory)` if it does not exist.

    It is written under a temporary name and renamed, so it is always complete; of two processes that build it at the
    same time the first to finish wins, and both use its directory.
    """
    target = cache_dir() / "models" / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        beside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=target.parent))
    except OSError as error:
        raise UserError(
            f"the model cache cannot be written: {error}",
            where=str(target.parent),
            remedy="set SFT_CACHE to another directory",
        ) from error
    try:
        build(beside)
        let_read(beside)  # a cache may be shared
        os.rename(beside, target)
    except OSError as error:
        if not target.is_dir():
            raise UserError(
                f"{name} could not be written: {error}",
                where=str(target.parent),
                remedy="free space there, or set SFT_CACHE",
            ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _remove_abandoned(target: Path) -> None:
    for left in target.parent.glob(f".{target.name}.*"):
        if time.time() - left.stat().st_mtime > ABANDONED_AFTER:
            shutil.rmtree(left, ignore_errors=True)
