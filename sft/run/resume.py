"""Whether a run directory may be gone on in: what changed in the config since it was begun."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sft.config.errors import UserError, raise_all
from sft.run.directory import RunDirectory

# What a run may be resumed under although it differs: nothing here reaches the weights.
HARMLESS = re.compile(
    r"(name|resume|objective|direction|save_merged_model|allow_targets|allow_changes|sweep|estimate|hub|profile|evaluation"
    r"|tracker|callbacks\.(display|metrics_jsonl|memory_monitor|loss_logger|generation_samples)"
    r"|trainer\.(logging_\w+|log_level\w*|disable_tqdm|report_to|save_\w+|per_device_eval_batch_size|dataloader_num_workers"
    r"|dataloader_pin_memory|dataloader_persistent_workers|dataloader_prefetch_factor|ddp_timeout|skip_memory_metrics)"
    r"|dataset\.(num_proc|cache|check_rows)|model\.(use_cache|device_map))(\..*)?"
)
_ABSENT = object()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, each with (before, now); a key one side lacks counts as None there."""
    first, second = flat(before), flat(now)
    keys = [*first, *(key for key in second if key not in first)]
    pairs = {key: (first.get(key), second.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


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
    allowed = tuple(allowed)
    errors = []
    for key, (old, new) in differences(before, config).items():
        if HARMLESS.fullmatch(key) or any(key == name or key.startswith(f"{name}.") for name in allowed):
            continue
        remedy = f"{key}={old} to go on as before, another hydra.run.dir for a new run, or 'allow_changes=[{key}]'"
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
