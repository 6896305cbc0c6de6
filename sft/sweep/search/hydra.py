"""A search as Hydra starts it: options, space and objective from its config, jobs through its launcher."""

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
# Their workers open the study of the job that they run.
REPORTING = (
    "hydra_plugins.sft_fused_launcher.FusedLauncher",
    "hydra_plugins.sft_joblib_launcher.JoblibLauncher",
    "hydra_plugins.sft_submitit_launcher.SubmititLauncher",
)


def search(config: DictConfig, loader: Any, launcher: Any, arguments: Sequence[str]) -> dict[str, Any]:
    """Run the search of a multirun's config (Hydra's node included).

    Args:
        loader: Hydra's config loader.
        launcher: Hydra's launcher, set up.
        arguments: the command line's overrides but Hydra's own.

    Raises:
        UserError: options, space or launcher that do not go together, or a directory that holds another search.
    """
    node: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    options = SearchOptions.of(node)
    objective, direction = judged_by(config)
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


def judged_by(config: Mapping[str, Any]) -> tuple[str, str]:
    """Objective and direction of a search; a loss is better when smaller."""
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
            f"jobs of {launcher} cannot report to the search",
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
            "a pruner looks at evaluations, and these jobs make none",
            where="hydra.sweeper.pruner",
            remedy="trainer.eval_strategy=steps trainer.eval_steps=N, or hydra.sweeper.pruner=none",
        )


def _repeat_seeds(options: SearchOptions, arguments: Sequence[str], directory: Path) -> None:
    """Make `seed` one of the keys that name a job and that its record lists."""
    if not options.seeds:
        return
    swept = swept_values(list(arguments))
    if any(argument.lstrip("+").startswith("seed=") for argument in arguments):
        raise UserError("is set by hydra.sweeper.seeds already", where="seed", remedy="leave one of the two out")
    set_swept({**swept, "seed": {}})
    record = SweepRecord(directory)
    if record.read():
        record.begin({"swept": [*swept, "seed"]}, [])


def _value(returned: Any) -> float | None:
    """What a job's task returned, where it is a figure; a job that failed has none."""
    try:
        value = returned.return_value
    except Exception:
        return None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
