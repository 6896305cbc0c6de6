"""Settings that may differ between two starts of a run because they do not affect the weights.

A class lists such settings under `weight_neutral`, next to their definition: names, or patterns such as "save_*".
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from sft.config.paths import conf_dir
from sft.config.schema import Train
from sft.config.source_code.class_attributes import class_attribute


def is_weight_neutral(key: str, *configs: Mapping[str, Any]) -> bool:
    """Whether a key has no effect on the weights of a run.

    Args:
        key: dotted, from the top of the config; keys below a setting are part of it.
        configs: plain; the first one that builds an object at the key determines the class.
    """
    top, _, setting = key.partition(".")
    if top in Train.weight_neutral:
        return True
    name = None
    if top == "callbacks":
        name, _, setting = setting.partition(".")
    setting = setting.partition(".")[0]
    patterns = class_attribute(_target(configs, top, name), "weight_neutral", ())
    return any(fnmatchcase(setting, pattern) for pattern in patterns)  # "" stands for a node as a whole


def _target(configs: tuple[Mapping[str, Any], ...], top: str, name: str | None) -> Any:
    """The `_target_` of a node, or of a callback by its name."""
    for config in configs:
        node = config.get(top)
        if name is not None and isinstance(node, Mapping):
            node = node.get(name)
        if isinstance(node, Mapping) and "_target_" in node:
            return node["_target_"]
    return _packaged_callbacks().get(name) if name else None


@functools.cache
def _packaged_callbacks() -> dict[str, str]:
    """The `_target_` of each packaged callback: an override may name one that is not in the config."""
    import yaml

    found: dict[str, str] = {}
    for path in sorted((conf_dir() / "callbacks").glob("*.yaml")):
        option = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        found |= {name: node["_target_"] for name, node in option.items() if node and "_target_" in node}
    return found
