"""The one way to build an object from a config node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sft.config.errors import UserError
from sft.config.node import plain as plain_containers
from sft.safety.targets import check_target


def build(node: Any, *, where: str = "", allowed: Iterable[str] = (), **extra: Any) -> Any:
    """Build what a node's `_target_` names, nested nodes first, from plain Python containers.

    Args:
        node: a config node (DictConfig or dict); None gives None, so that `quant=none` builds nothing.
        where: the node's key in the config, for errors ("lora").
        allowed: the user's own `allow_targets`.
        **extra: arguments that only the program knows; they win over the node's.

    Raises:
        UserError: the target is not allowed, or its constructor refuses the arguments.
    """
    if node is None:
        return None
    plain = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else plain_containers(node)
    allowed = list(allowed)
    for key, target in targets_of(plain, where):
        if error := check_target(target, key, allowed):
            raise error
    from hydra.utils import instantiate

    try:
        return instantiate(plain, _convert_="all", **extra)
    except Exception as error:
        raise _as_user_error(error, where) from error


def targets_of(node: Any, where: str) -> list[tuple[str, Any]]:
    """Every `_target_` in a tree of dicts and lists, with its key."""
    found: list[tuple[str, Any]] = []
    if isinstance(node, dict):
        if "_target_" in node:
            found.append((f"{where}._target_" if where else "_target_", node["_target_"]))
        for key, value in node.items():
            found += targets_of(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            found += targets_of(value, f"{where}[{index}]")
    return found


def _as_user_error(error: Exception, where: str) -> Exception:
    """A constructor's error without Hydra's wrapping; an error that is not about the arguments is passed on
    unchanged."""
    cause = error.__cause__ if type(error).__name__ == "InstantiationException" and error.__cause__ else error
    if isinstance(cause, UserError):
        return cause
    if isinstance(cause, (TypeError, ValueError, ImportError, OSError, AttributeError)) or cause is error:
        return UserError(
            " ".join(str(cause).split()), where=where, remedy=f"see the keys with: --cfg job --package {where}"
        )
    return cause if isinstance(cause, Exception) else error
