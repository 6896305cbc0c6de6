"""Errors for keys below a node that is off, or that does not exist."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from sft.config.checks.suggest import nearest, suggestion
from sft.config.errors import UserError

_ON = {"quant": "quant=nf4", "lora": "lora=r16", "callbacks": "callbacks=default", "tracker": "tracker=wandb"}


def switched_off(config: DictConfig, key: str, top: str) -> UserError:
    """The error for a key of a node that is off; names the option that switches it on."""
    meant = suggestion(key, [], _raw(config))
    option = meant if meant and meant.startswith(f"{top}=") else None
    on = f"{option} {key}=..." if option is None and (option := _ON.get(top)) else option
    return UserError(
        f"{top} is off ({top}=none), so it has no keys",
        where=key,
        remedy=f"{on}, or leave {key} out" if on else f"choose an option of {top}, or leave {key} out",
    )


def unknown_node(config: DictConfig, key: str, top: str) -> UserError:
    """The error for a key below a node that does not exist."""
    near = nearest(top, [str(k) for k in config if k != "hydra"])
    found = f"did you mean {near}.{key.partition('.')[2]}?" if near else suggestion(key, [], _raw(config))
    shown = ", ".join(sorted(str(k) for k in config if k != "hydra"))
    return UserError("no such key", where=key, remedy=found or f"there are: {shown}")


def _raw(config: DictConfig) -> dict[str, Any]:
    """A config with unresolved interpolations: enough to know its keys."""
    found = OmegaConf.to_container(config, resolve=False)
    return {str(key): value for key, value in found.items() if key != "hydra"} if isinstance(found, dict) else {}
