"""The directories of a sweep's jobs, and the check that no two jobs share one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sft.config.command_line.sweeps import expand_sweep
from sft.config.compose import config_loader
from sft.config.errors import UserError
from sft.config.resolvers import RESOLVER

_BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
_REMEDY = "leave hydra.sweep.subdir out, or put ${hydra.job.num} into it"
_NUMBERED = re.compile(r"hydra[:.]job\.(num|id)\b")


def job_overrides(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each job of a multirun; None for a search, which creates its jobs one by one."""
    if config.hydra.sweeper.get("_target_") != _BASIC:
        return None
    return expand_sweep([str(override) for override in config.hydra.overrides.task], config_loader(), most=None)


def refuse_shared_directories(config: DictConfig, overrides: Sequence[Sequence[str]] | None) -> None:
    """Refuse a sweep in which two jobs would write the same directory, because the second would resume the first.

    Args:
        config: of the multirun, Hydra's node included.
        overrides: of each job; None for a search, which creates its jobs one by one.

    Raises:
        UserError: naming the first two such jobs, or a search whose directories do not contain the job's number.
    """
    subdir = subdir_of(config)
    if RESOLVER in subdir:
        return
    if overrides is None:
        if not _NUMBERED.search(subdir):
            what = f"{subdir} does not contain the job's number, and two jobs of a search may have the same settings"
            raise UserError(what, where="hydra.sweep.subdir", remedy=_REMEDY)
        return
    seen: dict[str, int] = {}
    for number, each in enumerate(overrides):
        directory = _directory(config, list(each), number)
        if directory is None:
            return  # it cannot be resolved, which the first job reports
        if directory in seen:
            what = f"jobs {seen[directory]} and {number} would both write {directory}"
            raise UserError(what, where="hydra.sweep.subdir", remedy=_REMEDY)
        seen[directory] = number


def subdir_of(config: DictConfig) -> str:
    """`hydra.sweep.subdir` as it is written, interpolations and all."""
    return str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"])  # type: ignore[index,call-overload]


def _directory(config: DictConfig, overrides: list[str], number: int) -> str | None:
    """The directory of a job, as Hydra's launchers determine it."""
    from hydra.core.hydra_config import HydraConfig

    holder = HydraConfig.instance()
    before = holder.cfg
    try:
        job = config_loader().load_sweep_config(config, overrides)
        with open_dict(job):
            job.hydra.job.id = job.hydra.job.num = number
        HydraConfig.instance().set_config(job)
        return os.path.realpath(os.path.join(str(job.hydra.sweep.dir), str(job.hydra.sweep.subdir)))
    except OmegaConfBaseException:
        return None
    finally:
        holder.cfg = before
