"""Composing without a command line: for notebooks and scripts."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from sft.config.command_line.base import BASE_NAME, is_snapshot, over_base, read_yaml, register_base
from sft.config.command_line.overrides import quote_literal, with_environment
from sft.config.compose import compose_job, config_loader
from sft.config.entry.surroundings import read_dotenv
from sft.config.errors import raise_all
from sft.config.resolvers import evaluations_directory


def compose_script(overrides: list[str], file: Path | None = None, command: str = "train") -> DictConfig:
    """Compose and check one run, see `sft.api.compose`."""
    read_dotenv()
    loader = config_loader()
    name, overlay = command, None
    overrides = [quote_literal(override) for override in overrides]
    if file is not None:
        overlay = read_yaml(file)
        if is_snapshot(overlay):
            overrides = register_base(overlay, command, overrides, set(loader.list_groups("")))
            name, overlay = BASE_NAME, None
    if name == command:
        name, overrides = over_base(loader, name, command, with_environment(overrides))
    if overlay is not None:
        overrides, overlay = _choices(overlay, overrides, set(loader.list_groups("")))
    composed = compose_job(loader, name, overrides, command, overlay=overlay, predicts=True)
    raise_all(composed.errors)
    config, hydra = composed.config, composed.config.hydra
    with open_dict(config):
        config.hydra = {
            "run": {"dir": _run_dir(config)},
            "overrides": OmegaConf.to_container(hydra.overrides),
            "runtime": {"choices": OmegaConf.to_container(hydra.runtime.choices)},
        }
    return config


def _choices(overlay: DictConfig, overrides: list[str], groups: set[str]) -> tuple[list[str], DictConfig]:
    """A file's groups (`model: qwen3`) as overrides before those given, and the file without them."""
    given = {override.partition("=")[0] for override in overrides}
    chosen = {str(key): str(overlay[key]) for key in overlay if key in groups and isinstance(overlay[key], str)}
    rest = OmegaConf.create({str(key): overlay._get_node(key) for key in overlay if key not in chosen})
    return [*(f"{key}={option}" for key, option in chosen.items() if key not in given), *overrides], rest


def _run_dir(config: DictConfig) -> str:
    from datetime import datetime

    node = config.hydra.run._get_node("dir")
    text = str(node._value()) if node is not None else ""
    if "${" not in text:
        return text
    parent = (
        f"outputs/{config.name}" if "sft.evaluations" not in text else evaluations_directory(config.run, config.name)
    )
    return f"{parent}/{datetime.now():%Y-%m-%d_%H-%M-%S}"
