"""Every key of a composed config checked before anything heavy is imported, all faults at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sft.config import schema
from sft.config.build import targets_of
from sft.config.checks.conflicts import conflicts
from sft.config.checks.effects import TRAINING, without_effect
from sft.config.checks.figures import unknown_figures
from sft.config.checks.nodes import misplaced
from sft.config.checks.owners import OWNED
from sft.config.checks.schedules import conflicting_callbacks
from sft.config.checks.suggest import nearest, suggestion
from sft.config.checks.types import mismatch, nested_dataclass
from sft.config.errors import UserError
from sft.config.source_code.definitions import find_in_file
from sft.config.source_code.signature import Signature, read_signature, signature_of
from sft.safety.targets import check_target

# Keys of other commands, and what this command has instead.
ELSEWHERE = {"run": "to resume a run: hydra.run.dir=DIR (or resume=DIR for a new run from its checkpoints)"}
INSTANTIATE_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
# These accept **kwargs only to warn about unknown keys, which is the job of this check.
CLOSED = {"transformers.BitsAndBytesConfig"}


def check(
    config: dict[str, Any], command: str = "train", *, explicit: Iterable[str] = (), predicts: bool = False
) -> list[UserError]:
    """Every fault of a resolved config: unknown keys, wrong types, missing values, other owners, contradictions.

    Args:
        config: the composed config as plain containers, interpolations resolved.
        command: the name of the primary config ("train", "preview", ...).
        explicit: keys of `trainer` that the command line gives itself.
        predicts: whether a Python caller may give a `compute_metrics`.
    """
    listed = config.get("allow_targets")  # any other value is reported by another check
    allowed = [target for target in listed if isinstance(target, str)] if isinstance(listed, list) else []
    errors = [e for key, target in targets_of(config, "") if (e := check_target(target, key, allowed))]
    errors += list(_missing(config, ""))
    home = Path(schema.__file__)
    definition = find_in_file(home, schema.COMMANDS[command].__name__)
    if definition is not None:
        errors += list(_check_node(config, "", signature_of(*definition), config))
    for key, value in config.items():
        errors += list(_check_tree(value, key, config))
    known = {error.where for error in errors}
    errors += [error for error in misplaced(config) if error.where not in known]
    if command in TRAINING:
        errors += [error for error in _of_training(config, explicit, predicts) if error.where not in known]
    known = {error.where for error in errors}
    return errors + [error for error in conflicts(config) if error.where not in known]


def _of_training(config: dict[str, Any], explicit: Iterable[str], predicts: bool) -> Iterator[UserError]:
    """Settings that a training run would ignore or could not follow, although each value has the right type."""
    for rule in (
        lambda: without_effect(config, predicts),
        lambda: () if predicts else unknown_figures(config),
        lambda: conflicting_callbacks(config, explicit),
    ):
        try:
            yield from rule()  # type: ignore[no-untyped-call]
        except (AttributeError, TypeError):
            continue  # a value of the wrong type, which the type check has already reported


def unknown_key(key: str, valid: list[str], config: Mapping[str, Any]) -> UserError:
    """The error for an unknown key, with a suggestion where it is clear what was meant."""
    if key in ELSEWHERE:
        return UserError("this command has no such key", where=key, remedy=ELSEWHERE[key])
    shown = ", ".join(sorted(valid)[:12]) + (", ..." if len(valid) > 12 else "")
    return UserError("no such key", where=key, remedy=suggestion(key, valid, config) or f"valid here: {shown}")


def _check_tree(node: Any, where: str, config: Mapping[str, Any]) -> Iterator[UserError]:
    """Check each `_target_` node below `where` against what its target takes."""
    if isinstance(node, dict):
        target = node.get("_target_")
        signature = read_signature(target) if isinstance(target, str) else None
        if signature is not None:
            if target in CLOSED:
                signature.open = False
            yield from _check_node(node, where, signature, config)
        for key, value in node.items():
            yield from _check_tree(value, f"{where}.{key}", config)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _check_tree(value, f"{where}[{index}]", config)


def _check_node(
    node: dict[str, Any], where: str, signature: Signature, config: Mapping[str, Any]
) -> Iterator[UserError]:
    for key, value in node.items():
        full = f"{where}.{key}" if where else str(key)  # YAML's keys may be numbers
        if key in INSTANTIATE_KEYS:
            continue
        if full in OWNED:
            if error := OWNED[full].refusal(full, value):
                yield error
            continue
        if key not in signature.parameters:
            if not signature.open:
                names = [name for name in signature.parameters if f"{where}.{name}" not in OWNED]
                yield unknown_key(full, names, config)
            continue
        yield from _check_value(value, full, signature, config)


def _check_value(value: Any, full: str, signature: Signature, config: Mapping[str, Any]) -> Iterator[UserError]:
    key = full.rpartition(".")[2]
    annotation, home = signature.parameters[key], signature.homes[key]
    if value == "???" or (isinstance(value, dict) and "_target_" in value) or _is_auto(full, value):
        return
    wanted = mismatch(value, annotation, home)
    if wanted:
        yield UserError(f"{value!r} is not {wanted}", where=full, remedy=_remedy(full, value, wanted))
        return
    nested = nested_dataclass(annotation, home)
    if nested and isinstance(value, dict):
        definition, path, held = nested
        inner = signature_of(definition, path)
        for name, child in value.items() if held == "dict" else [("", value)]:
            child_key = f"{full}.{name}" if name else full
            if isinstance(child, dict) and "_target_" not in child:
                yield from _check_node(child, child_key, inner, config)
            elif not isinstance(child, dict) and held == "dict" and child is not None:
                yield UserError(
                    f"{child!r} is not a mapping",
                    where=child_key,
                    remedy=f"{child_key}.KEY=VALUE for one of: {', '.join(list(inner.parameters)[:6])}, ...",
                )


def _is_auto(key: str, value: Any) -> bool:
    """`auto` is an extension of ours where the library takes true or false."""
    return value == "auto" and key in ("trainer.gradient_checkpointing", "trainer.bf16")


def _remedy(key: str, value: Any, wanted: str) -> str:
    """An example of a value that fits; for a choice the nearest option, or all of them."""
    if wanted.startswith("one of "):
        near = nearest(str(value), wanted.removeprefix("one of ").split(", "))
        return f"did you mean {key}={near}?" if near else f"{key}={wanted}"
    for start, example in (("a whole number", "8"), ("a number", "0.1"), ("true", "true"), ("a list", "[a,b]")):
        if wanted.startswith(start):
            return f"give {key}={example}"
    return f"{key}.KEY=VALUE for each of its keys" if wanted == "a mapping" else f"give {key}=<{wanted}>"


def _missing(node: Any, where: str) -> Iterator[UserError]:
    """`???` marks a value that the user must give."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _missing(value, f"{where}[{index}]")
    elif node == "???":
        yield UserError("a value is missing", where=where, remedy=f"give {where}=VALUE on the command line")
