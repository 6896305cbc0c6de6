"""sft from Python: `from sft.api import compose, train`. Importing this loads nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

if TYPE_CHECKING:
    from sft.training.result import Result

__all__ = ["compose", "train"]


def compose(*overrides: str, file: str | Path | None = None) -> DictConfig:
    """Compose a run's config, as the command line does.

    Args:
        *overrides: as on the command line: "model=qwen3", "lora.r=8", "hydra.run.dir=DIR".
        file: a YAML file: a run's config.resolved.yaml, which is taken whole, or some keys to lay over the defaults
            (`lora: {r: 8}`). Overrides win over it.

    Returns:
        The config; `config.hydra.run.dir` is where `train` will write.

    Raises:
        UserError: every fault found, at once.
    """
    from sft.config.script import compose_script

    return compose_script(list(overrides), Path(file) if file is not None else None)


def train(
    config: DictConfig, callbacks: Sequence[Any] = (), compute_metrics: Callable[..., Any] | None = None
) -> Result:
    """Train a composed config and give its result: `result.directory`, `result.metrics`, `result.value`.

    Args:
        config: from `compose`; its values may have been changed.
        callbacks: transformers.TrainerCallback objects beside those of the config.
        compute_metrics: as transformers.Trainer takes it.

    Raises:
        UserError: a mistake in config or data.
        RunFailed: the run started and failed.
    """
    from sft.train import train as run

    return run(config, callbacks, compute_metrics)
