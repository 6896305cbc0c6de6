"""Whether a run directory may be resumed: what changed in the config since the run started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sft.config.checks.roles import follows_objective
from sft.config.errors import UserError, raise_all
from sft.config.weight_neutral import is_weight_neutral
from sft.run.directory import RunDirectory
from sft.training.resume.changeable import batch_of_a_step, effect_of, why_fixed


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, each with (before, now); a missing key counts as None."""
    first, second = flat(before), flat(now)
    keys = [*first, *(key for key in second if key not in first)]
    pairs = {key: (first.get(key), second.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], allowed: Iterable[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """The differences that affect the weights and that no name in `allowed` covers.

    A callback, adapter or quantization present on only one side is one difference: {"quant": ("none", "...Config")}.
    """
    allowed, found = tuple(allowed), differences(before, now)
    for key in ("quant", "lora", *(f"callbacks.{name}" for name in {**_callbacks(before), **_callbacks(now)})):
        pair = _node(before, key), _node(now, key)
        if (pair[0] is None) != (pair[1] is None):
            found = {name: pair for name, pair in found.items() if name != key and not name.startswith(f"{key}.")}
            found[key] = (_class(pair[0]), _class(pair[1]))
    decides = any(follows_objective(node) for each in (before, now) for node in _callbacks(each).values())
    return {
        key: pair
        for key, pair in found.items()
        if not (is_weight_neutral(key, now, before) and not (decides and key in ("objective", "direction")))
        and not any(key == name or key.startswith(f"{name}.") for name in allowed)
    }


def refuse_changes(
    run: RunDirectory, config: Mapping[str, Any], allowed: Iterable[str] = (), processes: tuple[int, int] = (1, 1)
) -> dict[str, tuple[Any, Any]]:
    """Refuse to resume a run with a config that differs in what affects the weights.

    Args:
        run: the run that is resumed.
        config: the resolved config of this start.
        allowed: keys that the user allows to differ.
        processes: the number of processes then and now.

    Returns:
        The allowed differences, by key: (then, now).

    Raises:
        UserError: naming every key that is fixed, or changeable but not allowed, with its old and new value.
    """
    before = read_snapshot(run)
    if before is None:
        return {}
    allowed, found = tuple(allowed), changes(before, config)
    open_ = changes(before, config, allowed)
    raise_all([_refusal(key, *pair) for key, pair in found.items() if key in open_ or effect_of(key) is None])
    raise_all([*_other_batch(before, config, processes), *_other_kind_of_schedule(before, config)])
    return found


def _refusal(key: str, old: Any, new: Any) -> UserError:
    again = "the same callbacks" if key.startswith("callbacks.") else f"{key}={_typed(old)}"
    what, effect = f"this run was started with {old}, not {new}", effect_of(key)
    if effect is None:
        remedy = f"{again} to resume it, or another hydra.run.dir for a new run"
        return UserError(f"{what}, and it cannot change: {why_fixed(key)}", where=key, remedy=remedy)
    remedy = (
        f"{again} to resume it as before, another hydra.run.dir for a new run, or 'allow_changes=[{key}]': {effect}"
    )
    return UserError(what, where=key, remedy=remedy)


def _other_batch(before: Mapping[str, Any], now: Mapping[str, Any], processes: tuple[int, int]) -> list[UserError]:
    """Require as many rows per step as before: the position in the data is counted in steps."""
    first = batch_of_a_step(before.get("trainer") or {}, processes[0])
    second = batch_of_a_step(now.get("trainer") or {}, processes[1])
    if first == second:
        return []
    unit = "batches" if first[1] or second[1] else "rows"
    return [
        UserError(
            f"a step of this run has {first[0]} {unit}, and would have {second[0]}: rows would be left out or repeated",
            where="trainer.per_device_train_batch_size",
            remedy="keep per_device_train_batch_size x gradient_accumulation_steps x processes as it was",
        )
    ]


def _other_kind_of_schedule(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[UserError]:
    """Refuse changes of a schedule that depends on past evaluations: it has no rate for steps it has not seen."""
    first, second = before.get("trainer") or {}, now.get("trainer") or {}
    kinds = [str(each.get("lr_scheduler_type")) for each in (first, second)]
    changed = [key for key in _RATE if first.get(key) != second.get(key)]
    if not changed or not any(kind in _FOLLOWING for kind in kinds):
        return []
    kind = next(kind for kind in kinds if kind in _FOLLOWING)
    what = f"{kind} computes the rate from past evaluations, which {changed[0]} cannot change"
    old = _typed(first.get(changed[0]))
    return [UserError(what, where=f"trainer.{changed[0]}", remedy=f"trainer.{changed[0]}={old}, or a new run")]


def read_snapshot(run: RunDirectory) -> dict[str, Any] | None:
    """config.resolved.yaml as plain containers; None where there is none."""
    if not run.config.is_file():
        return None
    from omegaconf import OmegaConf

    from sft.config.command_line.base import read_yaml

    found = OmegaConf.to_container(read_yaml(run.config), resolve=True)
    return found if isinstance(found, dict) else None  # type: ignore[return-value]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings flattened to dotted keys; lists stay values."""
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


def _typed(value: Any) -> Any:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value


_RATE = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
_FOLLOWING = ("reduce_lr_on_plateau", "greedy")
