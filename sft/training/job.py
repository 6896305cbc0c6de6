"""A command's job: the resolved config, the run directory, and the origin of both."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sft.config.errors import UserError
from sft.config.paths import expanded
from sft.config.run_config import RunConfig
from sft.distributed.ranks import Ranks
from sft.run.directory import RunDirectory
from sft.run.lock import holder


@dataclass
class Job:
    """One run to execute.

    Attributes:
        config: resolved, read-only, without Hydra's node.
        run: its directory.
        unresolved: the composed config as YAML.
        hydra: Hydra's own node, plain; {} where Hydra did not start it.
        origin: run.json of the run that this one replays; {} for a run of its own.
    """

    config: RunConfig
    run: RunDirectory
    unresolved: str
    hydra: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: DictConfig) -> Job:
        """Build a job from a command's config (Hydra knows the directory) or from `sft.api.compose` (the config has
        it)."""
        import copy

        task = copy.deepcopy(config)
        OmegaConf.set_struct(task, False)
        hydra = task.pop("hydra", None) or _hydra_node()
        plain = OmegaConf.to_container(task, resolve=True)
        assert isinstance(plain, dict)
        node = OmegaConf.to_container(hydra, resolve=False, enum_to_str=True) if hydra is not None else {}
        directory = _directory(hydra, str(plain.get("name", "sft")))
        return cls(RunConfig(plain), RunDirectory(directory), OmegaConf.to_yaml(task), dict(node))  # type: ignore[arg-type]

    def broadcast_from_main(self, ranks: Ranks) -> Job:
        """Rank 0's job on every rank: its directory, which depends on its clock, and its config.

        Raises:
            UserError: another rank composed a different config in settings that affect the weights.
        """
        if not ranks.is_distributed:
            return self
        from sft.training.resume.config_changes import changes

        config, path, unresolved, hydra, origin = ranks.broadcast(
            (self.config, self.run.path, self.unresolved, self.hydra, self.origin)
        )
        with ranks.raise_on_any_rank():
            for key, (first, here) in changes(config, self.config).items():
                raise UserError(
                    f"composed {here}, and rank 0 {first}",
                    where=key,
                    remedy="start every process with the same command, conf/, .env and environment",
                )
        self._remove_made(path)
        return Job(config, RunDirectory(path), unresolved, hydra, origin)

    def _remove_made(self, kept: Path) -> None:
        """Remove the directory that Hydra made by this process's clock; it stays empty if rank 0 has a different
        one."""
        made = str((self.hydra.get("runtime") or {}).get("output_dir") or self.run.path)
        if Path(made) != kept:
            with contextlib.suppress(OSError):  # it does not exist, or is in use
                Path(made).rmdir()

    def settled(self, config: RunConfig) -> Job:
        """The same job with open settings of its config resolved."""
        return replace(self, config=config)

    @property
    def shares_base(self) -> bool:
        """Whether this is a sweep's job that may reuse the base model of the previous job."""
        return self.group is not None and bool(self.config.sweep.share_base)

    @property
    def retries(self) -> bool:
        """Whether a failed run is retried; a sweep may disable that."""
        return self.group is None or bool(self.config.sweep.retry_failed)

    @property
    def group(self) -> str | None:
        """The sweep that this job belongs to, shown as one group by a tracker; None for a single run."""
        return self.run.path.parent.name if str(self.hydra.get("mode", "")).endswith("MULTIRUN") else None


def _hydra_node() -> Any:
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get() if HydraConfig.initialized() else None


def _directory(hydra: Any, name: str) -> Path:
    """The run directory; a default one (named by the clock) that another run already uses gets a number appended."""
    runtime = OmegaConf.select(hydra, "runtime.output_dir", default=None) if hydra is not None else None
    chosen = runtime or (OmegaConf.select(hydra, "run.dir", default=None) if hydra is not None else None)
    if chosen is None:
        from datetime import datetime

        chosen = f"outputs/{name}/{datetime.now():%Y-%m-%d_%H-%M-%S}"
    path = expanded(str(chosen)).absolute()
    if path.exists() and not path.is_dir():
        raise UserError("is a file", where=str(path), remedy="hydra.run.dir=ANOTHER")
    given = (
        [str(o) for o in (OmegaConf.select(hydra, "overrides.hydra", default=None) or [])]
        if hydra is not None
        else ["hydra.run.dir="]
    )
    if any(o.lstrip("+").startswith(("hydra.run.dir=", "hydra.sweep.")) or o == "hydra.mode=MULTIRUN" for o in given):
        return path
    free, number = path, 1
    while holder(free) or (free / "config.resolved.yaml").exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
