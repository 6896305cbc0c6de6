"""A finished run's config, or a YAML file, as the base that the command line's overrides go over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sft.config.command_line.bare_adapter import COMMANDS, as_model, run_around
from sft.config.command_line.quoting import quoted
from sft.config.errors import UserError
from sft.config.paths import conf_dir, expanded
from sft.safety.yaml_files import check_yaml

SNAPSHOT = "config.resolved.yaml"
BASE_NAME = "sft_base"


def over_base(loader: Any, config_name: str, command_name: str, overrides: list[str]) -> tuple[str, list[str]]:
    """With `run=DIR`, the run's resolved config takes the place of the command's defaults.

    DIR may be the adapter in it; one that was trained elsewhere becomes `model.adapter`.
    """
    given = [o for o in overrides if o.partition("=")[0] == "run"]
    if not given:
        return config_name, overrides
    from hydra.core.override_parser.overrides_parser import OverridesParser

    run = OverridesParser.create().parse_override(given[-1]).value()
    named = expanded(str(run).replace("\\${", "${"))
    if command_name in COMMANDS and (instead := as_model(run_around(named), overrides)) is not None:
        return config_name, instead
    if (around := run_around(named)) != named:
        overrides = [o if o.partition("=")[0] != "run" else f"run={quoted(str(around))}" for o in overrides]
    base = read_run(str(around))
    return BASE_NAME, register_base(base, command_name, overrides, set(loader.list_groups("")))


def read_yaml(path: Path) -> DictConfig:
    """A YAML file with a mapping at its top.

    Raises:
        UserError: it does not exist, or is not such YAML.
    """
    import yaml

    if wrong := check_yaml(path):
        raise wrong
    try:
        config = OmegaConf.load(path)
    except OSError as error:
        raise UserError("cannot be read: " + (error.strerror or str(error)), where=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError("is not YAML: " + " ".join(str(error).split()), where=str(path)) from None
    if not isinstance(config, DictConfig):
        raise UserError("has no mapping at its top level", where=str(path))
    return config


def read_run(run: str) -> DictConfig:
    """The resolved config of a run directory.

    Raises:
        UserError: the directory does not exist or is not a run's.
    """
    directory = expanded(run)
    if not directory.is_dir():
        raise UserError(
            "no such directory", where=f"run={run}", remedy="give the directory of a run, as printed when it ended"
        )
    snapshot = directory / SNAPSHOT
    if not snapshot.is_file():
        inside = sorted({p.parent.name for p in directory.glob(f"*/{SNAPSHOT}")})
        hint = (
            f"did you mean one of its jobs, run={directory / inside[0]}?"
            if inside
            else f"a run directory has {SNAPSHOT}"
        )
        raise UserError("is not the directory of a run", where=f"run={run}", remedy=hint)
    return read_yaml(snapshot)


def is_snapshot(config: DictConfig) -> bool:
    """Whether a file holds a complete run (every group's key) rather than an overlay of some keys."""
    return {"model", "quant", "lora", "dataset", "template", "callbacks", "trainer", "seed"} <= set(map(str, config))


def register_base(base: DictConfig, command: str, overrides: list[str], groups: set[str]) -> list[str]:
    """Register `base` as the primary config BASE_NAME, the command's own keys beside it.

    A group chosen again by the overrides is removed from the base (it would be merged otherwise) and appended.

    Args:
        overrides: the command line's.
        groups: the names of config groups.

    Returns:
        The overrides as they must be given over the base.
    """
    from hydra.core.config_store import ConfigStore

    own = read_yaml(conf_dir() / f"{command}.yaml")
    defaults = own.pop("defaults", [])
    # a later command must not repeat the run's push to the hub, and which service gets a key and the answers is
    # decided by the command line alone
    node: dict[str, Any] = {str(key): base._get_node(key) for key in base if key not in ("hydra", "hub", "judge")}
    chosen = [_plain_default(each) for each in defaults if isinstance(each, DictConfig)]
    extra = [d for d in chosen if (g := next(iter(d))) not in node and g not in ("experiment", "debug")]
    node = {**{str(k): own._get_node(k) for k in own if str(k) not in node}, **node}
    result = []
    for override in overrides:
        key, equals, _ = override.lstrip("+").partition("=")
        if equals and key in groups and not key.startswith("hydra") and "." not in key:
            node.pop(key, None)
            extra = [d for d in extra if key not in d]
            override = f"+{override.lstrip('+')}"
        result.append(override)
    if not any("hydra" in d for d in extra):
        extra.append({"hydra": "default"})
    ConfigStore.instance().store(name=BASE_NAME, node={"defaults": ["_self_", *extra], **node})
    return result


def _plain_default(default: DictConfig) -> dict[str, Any]:
    """An entry of a defaults list; over the base there is nothing to override, so it becomes a plain choice."""
    return {str(k).removeprefix("override "): v for k, v in default.items()}
