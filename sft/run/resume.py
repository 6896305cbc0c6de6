"""Whether a run directory may be gone on in: what changed in the config since it was begun."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sft.config.errors import UserError, raise_all
from sft.run.directory import RunDirectory

# What a run may be resumed under although it differs: nothing here reaches the weights.
HARMLESS = re.compile(
    r"(name|resume|on_nonfinite|objective|direction|save_merged_model|allow_targets|allow_changes|sweep|estimate|hub|profile|evaluation"
    r"|tracker|callbacks\.(display|metrics_jsonl|memory_monitor|loss_logger|generation_samples)"
    r"|trainer\.(logging_\w+|log_level\w*|disable_tqdm|report_to|save_\w+|per_device_eval_batch_size|dataloader_num_workers"
    r"|dataloader_pin_memory|dataloader_persistent_workers|dataloader_prefetch_factor|ddp_timeout|skip_memory_metrics|auto_find_batch_size)"
    r"|dataset\.(num_proc|cache|check_rows)|model\.(use_cache|device_map))(\..*)?"
)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, each with (before, now); a key one side lacks counts as None there."""
    first, second = flat(before), flat(now)
    keys = [*first, *(key for key in second if key not in first)]
    pairs = {key: (first.get(key), second.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], allowed: Iterable[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Those differences that reach the weights and that no name in `allowed` covers.

    A callback, an adapter or a quantization that only one side has is one difference: {"quant": ("none", "...Config")}.
    """
    allowed, found = tuple(allowed), differences(before, now)
    for key in ("quant", "lora", *(f"callbacks.{name}" for name in {**_callbacks(before), **_callbacks(now)})):
        pair = _node(before, key), _node(now, key)
        if (pair[0] is None) != (pair[1] is None):
            found = {name: pair for name, pair in found.items() if name != key and not name.startswith(f"{key}.")}
            found[key] = (_class(pair[0]), _class(pair[1]))
    return {
        key: pair
        for key, pair in found.items()
        if not HARMLESS.fullmatch(key) and not any(key == name or key.startswith(f"{name}.") for name in allowed)
    }


def refuse_changes(run: RunDirectory, config: Mapping[str, Any], allowed: Iterable[str] = ()) -> None:
    """Refuse to go on in a directory whose config differs in what reaches the weights.

    Args:
        config: the resolved config of this start.
        allowed: keys that the user lets differ.

    Raises:
        UserError: naming every such key with its old and its new value.
    """
    before = read_snapshot(run)
    if before is None:
        return
    errors = []
    for key, (old, new) in changes(before, config, allowed).items():
        again = "the same callbacks" if key.startswith("callbacks.") else f"{key}={old}"
        remedy = f"{again} to go on as before, another hydra.run.dir for a new run, or 'allow_changes=[{key}]'"
        errors.append(UserError(f"this run was begun with {old}, not {new}", where=key, remedy=remedy))
    raise_all(errors)


def read_snapshot(run: RunDirectory) -> dict[str, Any] | None:
    """config.resolved.yaml as plain containers; None where there is none."""
    if not run.config.is_file():
        return None
    from omegaconf import OmegaConf

    from sft.config.base import read_yaml

    found = OmegaConf.to_container(read_yaml(run.config), resolve=True)
    return found if isinstance(found, dict) else None  # type: ignore[return-value]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists stay values."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{name}."))
        else:
            found[name] = value if not isinstance(value, Mapping) else None
    return found


def _callbacks(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("callbacks") or {}


def _node(config: Mapping[str, Any], key: str) -> Any:
    parent, _, name = key.rpartition(".")
    return (_callbacks(config) if parent else config).get(name)


def _class(node: Any) -> str:
    return "none" if node is None else str(node.get("_target_", "")).rpartition(".")[2]
