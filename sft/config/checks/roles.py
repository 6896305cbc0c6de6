"""The roles of a config's callbacks in a run, declared by each class's `role`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft.config.source_code.class_attributes import class_attribute


def in_role(config: Mapping[str, Any], *roles: str) -> list[str]:
    """The names of the callbacks that have one of these roles, in the config's order.

    Args:
        config: resolved, plain.
        roles: as `sft.training.callbacks.base.RunCallback` lists them.
    """
    callbacks = config.get("callbacks")
    nodes = callbacks.items() if isinstance(callbacks, Mapping) else []
    return [str(name) for name, node in nodes if isinstance(node, Mapping) and role_of(node) in roles]


def role_of(node: Mapping[str, Any]) -> str | None:
    """The role of a callback's node; None for none."""
    return class_attribute(node.get("_target_"), "role")


def follows_objective(node: Any) -> bool:
    """Whether a callback's node may follow the run's objective."""
    if not isinstance(node, Mapping):
        return False
    return role_of(node) == "saves" or class_attribute(node.get("_target_"), "figure_argument") is not None
