"""One composed job: its overrides applied and its interpolations resolved, with every error collected."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from sft.config.checks.absent import switched_off, unknown_node
from sft.config.checks.suggest import nearest
from sft.config.errors import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


@dataclass
class Composed:
    """One composed job.

    Attributes:
        config: the job's config with Hydra's own node under `hydra`.
        errors: what is wrong with it.
        added: keys that no YAML names although their target accepts them; Hydra wants `++` before these.
        plain: the config as plain containers; None where it cannot be resolved.
        hydra: Hydra's own node likewise.
    """

    config: DictConfig
    errors: list[UserError] = field(default_factory=list)
    added: set[str] = field(default_factory=set)
    plain: dict[str, Any] | None = None
    hydra: dict[str, Any] = field(default_factory=dict)


def apply(composed: Composed, override: Override) -> None:
    """Apply one value override as Hydra would; a key that does not fit is recorded instead of raised."""
    config, key = composed.config, override.key_or_group
    if override.is_sweep_override():
        remedy = f"-m to make a run with each; a value with commas in it must be quoted: \"{key}='a,b'\""
        composed.errors.append(UserError("several values are given for a single run", where=key, remedy=remedy))
        return
    parent, _, last = key.rpartition(".")
    holder = OmegaConf.select(config, parent) if parent else config
    if override.is_delete():
        if OmegaConf.select(config, key, default="???") == "???":
            composed.errors.append(UserError("there is nothing to delete", where=key, remedy="leave the override out"))
            return
        with open_dict(config):
            holder.pop(last)
        return
    if holder is None and not override.is_force_add():
        top = parent.split(".")[0]
        if parent and OmegaConf.select(config, top) is None:
            composed.errors.append(switched_off(config, key, top) if top in config else unknown_node(config, key, top))
            return
    exists = (isinstance(holder, DictConfig) and last in holder) or (not parent and key in config)
    if override.value() is None and not exists and not (override.is_add() or override.is_force_add()):
        names = [str(k) for k in (holder if isinstance(holder, DictConfig) else config)]
        if parent in ("callbacks", "dataset.sources", "dataset.eval_sources"):
            near = nearest(last, names)
            remedy = f"did you mean {parent}.{near}?" if near else f"there are: {', '.join(names)}"
            composed.errors.append(UserError("there is nothing to turn off", where=key, remedy=remedy))
            return
    if not exists and not override.is_add() and not override.is_force_add():
        composed.added.add(key)
    try:
        OmegaConf.update(config, key, override.value(), merge=True, force_add=True)
    except (OmegaConfBaseException, ValueError, AssertionError) as error:
        composed.errors.append(UserError(" ".join(str(error).split()), where=key))


def resolved(composed: Composed) -> dict[str, Any]:
    """The config as plain containers; broken interpolations become errors. Missing `???` values stay."""
    config = composed.config
    result: dict[str, Any] = {}
    for key in list(config):
        if key == "hydra":
            result[key] = OmegaConf.to_container(config.hydra, resolve=False)
            continue
        try:
            value = "???" if OmegaConf.is_missing(config, key) else config[key]
            result[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        except OmegaConfBaseException as error:
            where = getattr(error, "full_key", None) or key
            composed.errors.append(UserError(" ".join(str(error).split("\n")[0].split()), where=str(where)))
    return result
