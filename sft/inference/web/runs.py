"""The finished runs that can be selected on the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.config.paths import expanded
from sft.run.directory import RunDirectory
from sft.run.disk.atomic import TEMPORARY
from sft.run.info import TrainingInfo
from sft.run.record import read_record

DEEPEST = 3  # outputs/<name>/sweep_<date>/<job>
_METHODS = {"lora": "LoRA", "qlora": "QLoRA", "full": "full fine-tune"}


def runs_directory(settings: Mapping[str, Any]) -> Path:
    """Where to search for runs: `runs_dir`, else the run's outputs/ or its parent, else ./outputs.

    Raises:
        UserError: `runs_dir` is not a directory.
    """
    if settings.get("runs_dir"):
        directory = expanded(settings["runs_dir"]).absolute()
        if not directory.is_dir():
            raise UserError("no such directory", where=f"runs_dir={settings['runs_dir']}")
        return directory
    if settings.get("run"):
        run = RunDirectory(settings["run"]).path
        return next((parent for parent in run.parents if parent.name == "outputs"), run.parent)
    return Path("outputs").absolute()


def finished_runs(directory: Path) -> dict[str, Path]:
    """{path below the directory: run directory} of the finished runs with weights, the newest first."""
    found = [(run.run_json.stat().st_mtime, run.path) for run in map(RunDirectory, _below(directory)) if _is_done(run)]
    return {str(path.relative_to(directory)): path for _, path in sorted(found, reverse=True)}


def _below(directory: Path, depth: int = DEEPEST) -> Iterator[Path]:
    """Directories with a run.json; the search does not descend into runs."""
    try:
        children = [path for path in directory.iterdir() if path.is_dir() and not path.name.startswith(TEMPORARY)]
    except OSError:
        return
    for child in children:
        try:
            if (child / "run.json").is_file():
                yield child
            elif depth > 1 and not child.is_symlink():
                yield from _below(child, depth - 1)
        except OSError:  # not readable
            continue


def _is_done(run: RunDirectory) -> bool:
    try:
        finished = read_record(run).get("status") == "finished"
    except UserError:
        return False
    return finished and ((run.adapter / "adapter_config.json").is_file() or (run.model / "config.json").is_file())


def model_line(info: TrainingInfo | None, figures: Mapping[str, Any]) -> str:
    """One line about a model: its base, method and loss."""
    if info is None:
        return "not trained by sft"
    rank = f" r={info.lora['r']}" if info.lora.get("r") else ""
    parts = [info.model_name, _METHODS.get(info.method, info.method) + rank]
    if figures.get("steps") is not None:
        parts.append(f"{figures['steps']:,} steps")
    for key in ("eval_loss", "eval_exact_match"):
        if isinstance(figures.get(key), int | float):
            parts.append(f"{key} {figures[key]:.4f}")
    return " · ".join(parts)
