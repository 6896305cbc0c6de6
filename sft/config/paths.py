"""Where configs and caches live: the packaged conf/, the user's own, and the cache directory."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """The configs that come with sft: inside the wheel at sft/conf, in a checkout beside the package."""
    packaged = PACKAGE / "conf"
    return packaged if packaged.is_dir() else PACKAGE.parent / "conf"


def user_conf_dirs() -> list[Path]:
    """The user's own config directories, which come before the packaged one: --config-dir, then ./conf."""
    given = [Path(entry).resolve() for entry in os.environ.get("SFT_CONFIG_DIR", "").split(os.pathsep) if entry]
    return [d for d in (*given, Path.cwd() / "conf") if d.is_dir() and d.resolve() != conf_dir().resolve()]


def cache_dir() -> Path:
    """$SFT_CACHE, or ~/.cache/sft."""
    return Path(os.environ.get("SFT_CACHE") or Path.home() / ".cache" / "sft")
