"""Configs composed from the packaged groups, and tiny models built from them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from sft.config.build import build

CONF = Path(__file__).resolve().parents[1] / "conf"


@pytest.fixture(scope="session")
def compose() -> Callable[..., dict[str, Any]]:
    """compose("model=tiny", "lora=r8", "lora.r=4") -> the groups as plain, resolved containers."""

    @functools.cache
    def composed(groups: tuple[str, ...]) -> Any:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra_compose(overrides=list(groups))

    def with_keys(*overrides: str) -> dict[str, Any]:
        groups = {"model": "tiny", "quant": "none", "lora": "r16"}
        keys = {}
        for override in overrides:
            key, _, value = override.partition("=")
            (groups if key in groups else keys)[key] = value
        config = copy.deepcopy(composed(tuple(f"+{group}={option}" for group, option in groups.items())))
        for key, value in keys.items():
            OmegaConf.update(config, key, yaml.safe_load(value), force_add=True)
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]

    return with_keys


@pytest.fixture(scope="session")
def built(compose: Callable[..., dict[str, Any]]) -> Callable[..., tuple[Any, Any, Any]]:
    """built("lora=r8", ...) -> (model spec, quant, lora) as the packaged config builds them."""

    def objects(*overrides: str) -> tuple[Any, Any, Any]:
        config = compose(*overrides)
        return tuple(build(config[key], where=key) for key in ("model", "quant", "lora"))  # type: ignore[return-value]

    return objects
