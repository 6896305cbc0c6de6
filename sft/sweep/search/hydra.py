"""A search started by Hydra: options, space and objective from its config, jobs through its launcher."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sft.config.checks.conflicts import evaluates
from sft.config.command_line.overrides import swept_values
from sft.config.errors import UserError
from sft.config.paths import expanded
from sft.config.resolvers import set_swept
from sft.sweep.record import SweepRecord
from sft.sweep.search.search import Search
from sft.sweep.search.space import parse_space
from sft.sweep.search.study import SearchOptions

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
# Launchers whose workers open the study of their job.
REPORTING = (
    "hydra_plugins.sft_fused_launcher.FusedLauncher",
    "hydra_plugins.sft_joblib_launcher.JoblibLauncher",
    "hydra_plugins.sft_submitit_launcher.SubmititLauncher",
)


def search(config: DictConfig, loader: Any, launcher: Any, arguments: Sequence[str]) -> dict[str, Any]:
    """Run the search of a multirun's config (including Hydra's node).

    Args:
        loader: Hydra's config loader.
        launcher: Hydra's launcher, already set up.
        arguments: the command line's overrides without Hydra's own.

    Raises:
        UserError: options, space and launcher are incompatible, or the directory has another search.
    """
    node: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    options = SearchOptions.of(node)
    objective, direction = search_objective(config)
    _check_pruning(options, config)
    directory = expanded(str(config.hydra.sweep.dir)).absolute()
    space = parse_space(arguments, loader)
    _repeat_seeds(options, arguments, directory)
    sweep = config.get("sweep") or {}

    def launch(overrides: Sequence[Sequence[str]], first: int) -> list[float | None]:
        returned = launcher.launch([list(each) for each in overrides], initial_job_idx=first)
        return [_value(job) for job in returned]

    return Search(
        directory,
        space,
        options,
        launch,
        objective,
        direction,
        parallel=config.hydra.launcher["_target_"] != BASIC,
        retry_failed=bool(sweep.get("retry_failed", True)),
    ).run()


def search_objective(config: Mapping[str, Any]) -> tuple[str, str]:
    """Objective and direction of a search; losses are minimized."""
    objective = config.get("objective")
    if config.get("direction"):
        return str(objective or "eval_loss"), str(config["direction"])
    if objective is None:
        return "eval_loss", "minimize"
    from sft.config.checks.figures import greater_is_better

    return str(objective), "maximize" if greater_is_better(str(objective)) else "minimize"


def _check_pruning(options: SearchOptions, config: DictConfig) -> None:
    if options.pruner == "none":
        return
    launcher = config.hydra.launcher["_target_"]
    if launcher not in (BASIC, *REPORTING):
        raise UserError(
            f"jobs of the launcher {launcher} cannot report to the search",
            where="hydra.sweeper.pruner",
            remedy="hydra.sweeper.pruner=none, or hydra/launcher=basic, fused, joblib or submitit_local",
        )
    if config.hydra.launcher.get("cluster") == "slurm":
        raise UserError(
            "jobs on other machines cannot report to the search: SQLite's locks do not hold on network file systems",
            where="hydra.sweeper.pruner",
            remedy="hydra.sweeper.pruner=none with hydra/launcher=submitit_slurm",
        )
    if "trainer" in config and not evaluates(OmegaConf.to_container(config, resolve=False)):  # type: ignore[arg-type]
        raise UserError(
            "a pruner needs evaluations, and these jobs make none",
            where="hydra.sweeper.pruner",
            remedy="trainer.eval_strategy=steps trainer.eval_steps=N, or hydra.sweeper.pruner=none",
        )


def _repeat_seeds(options: SearchOptions, arguments: Sequence[str], directory: Path) -> None:
    """Add `seed` to the keys in a job's name and record."""
    if not options.seeds:
        return
    swept = swept_values(list(arguments))
    if any(argument.lstrip("+").startswith("seed=") for argument in arguments):
        raise UserError("is already set by hydra.sweeper.seeds", where="seed", remedy="leave one of the two out")
    set_swept({**swept, "seed": {}})
    record = SweepRecord(directory)
    if record.read():
        record.begin({"swept": [*swept, "seed"]}, [])


def _value(returned: Any) -> float | None:
    """A job's return value if it is a number; None for a failed job."""
    try:
        value = returned.return_value
    except Exception:
        return None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
