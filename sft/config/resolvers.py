"""The interpolations that sft's configs use beyond Hydra's own."""

from __future__ import annotations

import re

from omegaconf import OmegaConf

_swept: list[str] = []


def register() -> None:
    """Make `${sft.job:}` known to OmegaConf; calling it again changes nothing."""
    OmegaConf.register_new_resolver("sft.job", job_directory, replace=True)


def set_swept_keys(keys: list[str]) -> None:
    """Tell the job-name resolver which keys this command sweeps over."""
    _swept[:] = keys


def job_directory(number: object) -> str:
    """`<number>_<overrides>` for a sweep's job, in letters, digits, `.`, `_` and `-` alone, at most 120 characters."""
    from hydra.core.hydra_config import HydraConfig

    parts = [str(number)]
    for override in HydraConfig.get().overrides.task:
        key, _, value = str(override).lstrip("+~").partition("=")
        if key in _swept:
            key = key.removeprefix("trainer.").removeprefix("dataset.sources.")
            parts.append(f"{plain_name(key)}-{plain_name(value)}")
    return "_".join(parts)[:120].rstrip("._-")


def plain_name(text: str) -> str:
    """Text with everything but letters, digits, `.`, `_` and `-` turned into `-`, runs of it made one."""
    return re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]", "-", text)).strip("-.") or "none"
