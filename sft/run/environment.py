"""The environment of a run: library versions, the machine, the state of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import sft
from sft.run.memory import total_bytes
from sft.system.processes import usable_cores

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "peft",
    "bitsandbytes",
    "accelerate",
    "hydra-core",
    "omegaconf",
    "safetensors",
    "numpy",
)


def versions() -> dict[str, str | None]:
    """The versions of sft, Python and the libraries that affect results; None where not installed. Imports none of
    them."""
    found: dict[str, str | None] = {"sft": sft.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def hardware() -> dict[str, Any]:
    """The processor, its cores, memory in bytes, and the GPUs; imports torch to ask for the latter."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_bytes": total_bytes(),
        "gpus": _gpus(),
    }


def git_state(directory: str | os.PathLike[str] | None = None) -> dict[str, Any] | None:
    """Commit and state of the git repository of a directory (of this package by default), None outside of one.

    Returns:
        ``{"commit": 40 hex digits, "dirty": whether tracked files differ from it}``
    """
    where = Path(directory) if directory is not None else Path(sft.__file__).parent
    commit = _git(where, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(where, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _git(where: Path, *arguments: str) -> str | None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # read only: refreshing the index would write
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-C", str(where), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _gpus() -> list[dict[str, Any]]:
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    properties = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [
        {"name": p.name, "memory_bytes": p.total_memory, "compute_capability": f"{p.major}.{p.minor}"}
        for p in properties
    ]
