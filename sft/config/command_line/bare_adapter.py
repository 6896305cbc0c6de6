"""`run=` with an adapter's directory: that of a finished run, or one that was trained elsewhere (peft, TRL, axolotl)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sft.config.command_line.overrides import quoted
from sft.config.errors import UserError

SNAPSHOT = "config.resolved.yaml"
COMMANDS = ("chat", "webui", "evaluate", "merge")  # the commands that work on an adapter without its run


def run_around(path: Path) -> Path:
    """The run directory whose adapter/ or model/ is named; any other path as it is."""
    inside = path.name in ("adapter", "model") and (path.parent / SNAPSHOT).is_file()
    return path.parent if inside else path


def as_model(path: Path, overrides: list[str]) -> list[str] | None:
    """The overrides with a bare adapter's directory as `model.adapter` in place of `run`.

    The base is the one on the command line, else the one that the adapter's own files name.

    Returns:
        None where the directory holds no adapter, or is that of a run.

    Raises:
        UserError: the base is not known.
    """
    if (path / SNAPSHOT).is_file() or not (path / "adapter_config.json").is_file():
        return None
    rest = [override for override in overrides if override.partition("=")[0] != "run"]
    keys = {override.lstrip("+").partition("=")[0] for override in rest}
    base = [] if keys & {"model", "model.name"} else ["model=hub", f"model.name={quoted(_base_of(path))}"]
    return [*base, *rest, f"model.adapter={quoted(str(path.absolute()))}"]


def _base_of(path: Path) -> str:
    """The base that training_info.json or adapter_config.json names."""
    base = _read(path / "training_info.json").get("model_path") or _read(path / "adapter_config.json").get(
        "base_model_name_or_path"
    )
    if not isinstance(base, str) or not base:
        raise UserError(
            "does not say which base it was trained on",
            where=str(path / "adapter_config.json"),
            remedy=f"model=hub model.name=BASE model.adapter={path}",
        )
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise UserError(
            f"was trained on {base}, which does not exist on this machine",
            where=str(path),
            remedy=f"model=hub model.name=BASE model.adapter={path}",
        )
    return base


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
