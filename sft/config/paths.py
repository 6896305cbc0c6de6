"""Where configs and caches are: the packaged conf/, the user's own, the cache directory; hints for missing paths."""

from __future__ import annotations

import os
from pathlib import Path

from sft.config.text import closest_names

PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """The configs that come with sft: inside the wheel at sft/conf, in a checkout beside the package."""
    packaged = PACKAGE / "conf"
    return packaged if packaged.is_dir() else PACKAGE.parent / "conf"


def user_conf_dirs() -> list[Path]:
    """The user's own config directories, which come before the packaged one: --config-dir, then ./conf."""
    given = [Path(entry).resolve() for entry in os.environ.get("SFT_CONFIG_DIR", "").split(os.pathsep) if entry]
    return [d for d in (*given, Path.cwd() / "conf") if d.is_dir() and d.resolve() != conf_dir().resolve()]


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~` expanded. `~NAME` of an unknown user stays as it is instead of raising, and so does not exist."""
    return Path(os.path.expanduser(path))


def cache_dir() -> Path:
    """$SFT_CACHE, or ~/.cache/sft."""
    return expanded(os.environ.get("SFT_CACHE") or "~/.cache/sft").absolute()


def nearest_path(path: Path) -> str | None:
    """The remedy for a path that does not exist: the most similar name in its directory, if there is one."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return f"{path.parent} is not a directory"
    near = closest_names(path.name, names)
    return f"did you mean {path.with_name(near[0])}?" if near else None
