"""Configs composed from the packaged groups, and tiny models built from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.config.build import build

CONF = Path(__file__).resolve().parents[2] / "conf"


@pytest.fixture(scope="session")
def compose() -> Callable[..., dict[str, Any]]:
    """compose("model=tiny", "lora=r8") -> the groups as plain, resolved containers."""
    import functools

    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    @functools.cache
    def composed(*overrides: str) -> dict[str, Any]:
        groups = {"model": "tiny", "quant": "none", "lora": "r16"}
        values = []
        for override in overrides:
            key, _, value = override.partition("=")
            if key in groups:
                groups[key] = value
            else:
                values.append(override)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra_compose(overrides=[*(f"+{k}={v}" for k, v in groups.items()), *values])
        return OmegaConf.to_container(config, resolve=True)

    return composed


@pytest.fixture(scope="session")
def built(compose: Callable[..., dict[str, Any]]) -> Callable[..., tuple[Any, Any, Any]]:
    """built("lora=r8", ...) -> (model spec, quant, lora) as the packaged config builds them."""

    def objects(*overrides: str) -> tuple[Any, Any, Any]:
        config = compose(*overrides)
        return tuple(build(config[key], where=key) for key in ("model", "quant", "lora"))  # type: ignore[return-value]

    return objects
