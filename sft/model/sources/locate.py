"""Resolving a model's name: a hub id, or a local directory with a model."""

from __future__ import annotations

import json
from pathlib import Path

from sft.config.errors import UserError
from sft.config.paths import expanded


def locate_name(name: str) -> str:
    """A hub id as it is; a directory as its absolute path.

    Raises:
        UserError: the name is a path without a model.
    """
    path = expanded(name)
    if path.is_dir():
        _check_directory(path)
        return str(path.resolve())
    if path.is_file() or _looks_like_a_path(name):
        problem = "is a file, not a model's directory" if path.is_file() else "there is no such directory"
        raise UserError(
            f"{name}: {problem}", where="model.name", remedy="give a directory with config.json, or a hub id"
        )
    return name


def is_local(name: str) -> bool:
    """Whether a located name is a directory of this machine."""
    return Path(name).is_dir()


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or name.endswith("/")


def _check_index(path: Path) -> None:
    """Refuse an index of weights that names anything but safetensors files next to it."""
    if not path.is_file():
        return
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            "is not an index of weights", where=str(path), remedy="download the model's directory again"
        ) from None
    wrong = sorted(str(name) for name in names if Path(str(name)).name != name or not name.endswith(".safetensors"))
    if wrong or not names:
        what = f"names {wrong[0]!r}, which is not a safetensors file beside it" if wrong else "names no weights"
        raise UserError(what, where=str(path), remedy="download the model's directory again")


def _check_directory(path: Path) -> None:
    """Refuse a directory without a model, suggesting the one that was probably meant."""
    if (path / "config.json").is_file():
        _check_index(path / "model.safetensors.index.json")
        return
    remedy = "give a directory with config.json and *.safetensors"
    if (path / "adapter_config.json").is_file():
        raise UserError(
            f"{path} holds an adapter, not a model",
            where="model.name",
            remedy=f"model.adapter={path} to continue training it, or run=DIR for the run that made it",
        )
    for inner in ("merged", "model"):
        if (path / inner / "config.json").is_file():
            remedy = f"model.name={path / inner}, or run={path}"
            break
    else:
        if (path / "adapter" / "adapter_config.json").is_file():
            remedy = f"run={path}, or model.adapter={path / 'adapter'}"
    raise UserError(f"{path} has no config.json", where="model.name", remedy=remedy)
