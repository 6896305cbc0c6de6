"""Composing without a command line: for notebooks and scripts."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from sft.config.app import read_dotenv
from sft.config.base import BASE_NAME, is_snapshot, read_yaml, register_base
from sft.config.check import check
from sft.config.compose import compose_job, config_loader, plain
from sft.config.errors import UserError, raise_all
from sft.config.overrides import quote_literal, with_environment


def compose_script(overrides: list[str], file: Path | None = None) -> DictConfig:
    """Compose and check one run, see `sft.api.compose`."""
    read_dotenv()
    loader = config_loader()
    name, overrides = "train", [quote_literal(override) for override in overrides]
    overlay = None
    if file is not None:
        overlay = read_yaml(file)
        if is_snapshot(overlay):
            name, overlay = BASE_NAME, _registered(loader, overlay, overrides)
    if overlay is None or name == "train":
        overrides = with_environment(overrides)
    composed = compose_job(loader, name, _over(overrides, name, loader), "train")
    raise_all(composed.errors)
    config = composed.config
    if overlay is not None and name == "train":
        config = _overlaid(config, overlay, overrides, loader)
    hydra = config.hydra
    with open_dict(config):
        config.hydra = {
            "run": {"dir": _run_dir(config)},
            "overrides": OmegaConf.to_container(hydra.overrides),
            "runtime": {"choices": OmegaConf.to_container(hydra.runtime.choices)},
        }
    return config


def _registered(loader, snapshot: DictConfig, overrides: list[str]) -> DictConfig:
    register_base(snapshot, "train", overrides, set(loader.list_groups("")))
    return snapshot


def _over(overrides: list[str], name: str, loader) -> list[str]:
    """Over a snapshot a group's option is appended, for the snapshot has no defaults list that it could replace."""
    if name != BASE_NAME:
        return overrides
    groups = set(loader.list_groups(""))
    return [f"+{o}" if o.partition("=")[0] in groups else o for o in overrides]


def _overlaid(config: DictConfig, overlay: DictConfig, overrides: list[str], loader) -> DictConfig:
    """The file's groups (`model: qwen3`) chosen, its keys laid over, the overrides over those; checked once more."""
    groups = set(loader.list_groups(""))
    named = {o.partition("=")[0] for o in overrides}
    choices = [f"{key}={overlay[key]}" for key in overlay if key in groups and isinstance(overlay[key], str)]
    choices = [choice for choice in choices if choice.partition("=")[0] not in named]
    keys = {key: overlay[key] for key in overlay if key not in {c.partition("=")[0] for c in choices}}
    before = compose_job(loader, "train", [*choices, *[o for o in overrides if o.partition("=")[0] in groups]], "train")
    raise_all(before.errors)
    with open_dict(before.config):
        merged = OmegaConf.merge(before.config, OmegaConf.create(keys))
    values = [o for o in overrides if o.partition("=")[0] not in groups]
    from sft.config.compose import Composed, apply_overrides

    composed = Composed(merged)  # type: ignore[arg-type]
    apply_overrides(composed, values)
    try:
        found = check(plain(composed.config))
    except Exception as error:
        raise UserError(" ".join(str(error).split())) from error
    raise_all([*composed.errors, *found])
    return composed.config


def _run_dir(config: DictConfig) -> str:
    from datetime import datetime

    node = config.hydra.run._get_node("dir")
    text = str(node._value()) if node is not None else ""
    if "${" not in text:
        return text
    return f"outputs/{config.name}/{datetime.now():%Y-%m-%d_%H-%M-%S}"
