"""The interpolations that sft's configs use beyond Hydra's own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote

from omegaconf import OmegaConf

from sft.config.paths import expanded

RESOLVER = "sft.job"
MAPPING = "sft.mapping"  # a mapping with keys that Hydra's grammar cannot express
_SWEPT = "SFT_SWEPT"


def register() -> None:
    """Register sft's resolvers with OmegaConf; safe to call again."""
    OmegaConf.register_new_resolver(RESOLVER, job_directory, replace=True)
    OmegaConf.register_new_resolver(MAPPING, lambda text: json.loads(unquote(str(text))), replace=True)
    OmegaConf.register_new_resolver("sft.evaluations", evaluations_directory, replace=True)


def evaluations_directory(run: str | None, name: str) -> str:
    """Where evaluations are kept: in the run's directory, or under outputs/ for a model that is given by name."""
    return os.path.join(str(expanded(run)), "evaluations") if run else f"outputs/{name}/evaluations"


def mapping_as_interpolation(mapping: Mapping[str, object]) -> str:
    """An interpolation that evaluates to a mapping, in characters that never need quoting."""
    return f"${{{MAPPING}:{quote(json.dumps(mapping), safe='*./@|').replace('~', '%7E')}}}"


def set_swept(swept: Mapping[str, Mapping[str, str]]) -> None:
    """Tell the job-name resolver which keys this command sweeps over, and how their values were typed.

    They are passed through the environment, so that a launcher's worker processes know them too.

    Args:
        swept: {key: {value as Hydra writes it: value as typed}}.
    """
    os.environ[_SWEPT] = json.dumps(swept)


def as_typed(key: str, value: str) -> str:
    """A swept key's value as the user typed it: Hydra turns 3e-4 into 0.0003."""
    return _swept().get(key, {}).get(value, value)


def _swept() -> dict[str, dict[str, str]]:
    return json.loads(os.environ.get(_SWEPT) or "{}")


def job_directory(number: object) -> str:
    """The name of the directory of the sweep's job that Hydra is about to start."""
    from hydra.core.hydra_config import HydraConfig

    return job_name(number, HydraConfig.get().overrides.task)


def job_name(number: object, overrides: Iterable[object]) -> str:
    """`<number>_<overrides>` for a sweep's job, in letters, digits, `.`, `_` and `-` alone, at most 120 characters."""
    swept, parts = _swept(), [str(number)]
    for override in overrides:
        key, _, value = str(override).lstrip("+~").partition("=")
        if key in swept:
            value = as_typed(key, value)
            key = key.removeprefix("trainer.").removeprefix("dataset.sources.")
            parts.append(f"{plain_name(key)}-{plain_name(value)}")
    return "_".join(parts)[:120].rstrip("._-")


def plain_name(text: str) -> str:
    """Text with each run of characters other than letters, digits, `.`, `_` and `-` replaced by one `-`.

    Numbers keep their sign and their value: `1e+30` is `1e30`, and `-1` differs from `1`.
    """
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text.strip()):
        return text.strip().replace("+", "")
    return re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]", "-", text)).strip("-.") or "none"
