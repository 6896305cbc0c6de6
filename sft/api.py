"""sft from Python: `from sft.api import compose, train, evaluate`. Importing this loads nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

if TYPE_CHECKING:
    from sft.inference.evaluated import Evaluated
    from sft.sweep.ranking import Leaderboard
    from sft.training.result import Result

__all__ = ["compose", "evaluate", "sweep", "train"]


def compose(*overrides: str, file: str | Path | None = None, command: str = "train") -> DictConfig:
    """Compose a run's config, as the command line does.

    Args:
        *overrides: as on the command line: "model=qwen3", "lora.r=8", "hydra.run.dir=DIR".
        file: a YAML file: a run's config.resolved.yaml, which is taken whole, or some keys to lay over the defaults
            (`lora: {r: 8}`). Overrides win over it.
        command: whose config: "train", or "evaluate", which takes "run=DIR".

    Returns:
        The config; `config.hydra.run.dir` is where `train` or `evaluate` will write.

    Raises:
        UserError: every fault found, at once.
    """
    from sft.config.script import compose_script

    return compose_script(list(overrides), Path(file) if file is not None else None, command)


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


def sweep(
    config: DictConfig,
    grid: Mapping[str, Sequence[Any]],
    fused: bool = False,
    directory: str | Path | None = None,
    n_jobs: int | None = None,
) -> Leaderboard:
    """Run every combination of a grid, `sweep(config, {"lora.r": [8, 16], "trainer.learning_rate": [1e-4, 3e-4]})`.

    The same grid and directory go on with what an earlier call began. A job that fails does not stop the others.

    Args:
        config: from `compose`.
        grid: values by key; groups too (`{"lora": ["r8", "dora"]}`).
        fused: let jobs that share a base model train together, as `hydra/launcher=fused` does.
        directory: where the jobs' directories and the leaderboard go; None: outputs/<name>/sweep_<date>_<time>.
        n_jobs: how many train together at a time; None: as many as the memory allows.

    Returns:
        The ranked jobs: `found.winner`, `found.ranked`, each with `path`, `values` and `figures`; `found.differences`.

    Raises:
        UserError: a mistake in any job's config, before the first one runs.
    """
    from sft.sweep.script import run_grid

    return run_grid(config, grid, fused, directory, n_jobs)


def evaluate(what: DictConfig | str | Path, *overrides: str) -> Evaluated:
    """Evaluate a finished run or a model; gives `found.metrics`, `found.directory`, and its tables as `str(found)`.

    Args:
        what: a run's directory, or a config from `compose(..., command="evaluate")`.
        *overrides: with a run's directory, as on the command line: "evaluation=compare", "dataset.path=FILE".

    Raises:
        UserError: a mistake in config or data, or a run without weights.
    """
    from sft.evaluate import evaluate as measure

    if isinstance(what, DictConfig):
        return measure(what)
    return measure(compose(f"run={what}", *overrides, command="evaluate"))
