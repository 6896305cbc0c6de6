"""Every key of a composed config checked before anything heavy is imported, all faults at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft.config import schema
from sft.config.build import targets_of
from sft.config.conflicts import conflicts
from sft.config.errors import UserError
from sft.config.signature import Signature, find_in_file, read_signature, signature_of
from sft.config.targets import check_target
from sft.config.types import mismatch, nested_dataclass

# Settings that would have two owners. Key -> who owns it.
OWNED = {
    "trainer.seed": "seed",
    "trainer.output_dir": "hydra.run.dir (the run directory)",
    "trainer.report_to": "tracker",
    "trainer.run_name": "name",
    "trainer.resume_from_checkpoint": "resume",
    "trainer.hub_token": "the environment variable HF_TOKEN",
    "trainer.push_to_hub": "hub.push",
    "trainer.local_rank": "torchrun",
    "lora.base_model_name_or_path": "model.name",
    "lora.task_type": "sft, which trains causal language models",
    "lora.inference_mode": "sft",
    "trainer.packing": "dataset.packing",
    "trainer.max_length": "dataset.max_length",
    "trainer.padding_free": "model.attn_implementation",
    "trainer.assistant_only_loss": "dataset.train_on",
    "trainer.completion_only_loss": "dataset.train_on",
    "trainer.dataset_kwargs": "dataset",
}
# What people call a setting elsewhere, and its name here.
SYNONYMS = {
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "scheduler": "lr_scheduler_type",
    "lr_scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "max_seq_length": "max_length",
    "cutoff_len": "max_length",
    "sequence_len": "max_length",
}
# Keys of other commands, by what this one has instead.
ELSEWHERE = {"run": "to go on with a run: hydra.run.dir=DIR (or resume=DIR for a new one from its checkpoints)"}
INSTANTIATE_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
# Read **kwargs only to warn about what they do not know, which is what this check is for.
CLOSED = {"transformers.BitsAndBytesConfig"}


def check(config: dict[str, Any], command: str = "train") -> list[UserError]:
    """Every fault of a resolved config: unknown keys, wrong types, missing values, other owners, contradictions.

    Args:
        config: the composed config as plain containers, interpolations resolved.
        command: the name of the primary config ("train", "preview", ...).
    """
    listed = config.get("allow_targets")  # what it may be else is an error of its own
    allowed = [target for target in listed if isinstance(target, str)] if isinstance(listed, list) else []
    errors = [e for key, target in targets_of(config, "") if (e := check_target(target, key, allowed))]
    errors += list(_missing(config, ""))
    home = Path(schema.__file__)
    definition = find_in_file(home, schema.COMMANDS[command].__name__)
    if definition is not None:
        errors += list(_check_node(config, "", signature_of(*definition)))
    for key, value in config.items():
        errors += list(_check_tree(value, key))
    known = {error.where for error in errors}
    return errors + [error for error in conflicts(config) if error.where not in known]


def nearest(key: str, valid: list[str]) -> str | None:
    """The valid name most like a mistyped one, or the name that a setting known by another one has here."""
    if SYNONYMS.get(key) in valid:
        return SYNONYMS[key]
    found = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    if found:
        return found[0]
    # `rnak` for `r`, `lr` for `learning_rate`: close by letters although not by length
    prefixed = [name for name in valid if key.startswith(name) or name.startswith(key)]
    return max(prefixed, key=len) if prefixed else None


def unknown_key(key: str, valid: list[str]) -> UserError:
    """The error for a key that nothing takes, naming the nearest that something does."""
    if key in ELSEWHERE:
        return UserError("this command has no such key", where=key, remedy=ELSEWHERE[key])
    prefix, _, last = key.rpartition(".")
    near = nearest(last, valid)
    full = f"{prefix}.{near}" if prefix else near
    shown = ", ".join(sorted(valid)[:12]) + (", ..." if len(valid) > 12 else "")
    return UserError("no such key", where=key, remedy=f"did you mean {full}?" if near else f"valid here: {shown}")


def _check_tree(node: Any, where: str) -> Iterator[UserError]:
    """Check each `_target_` node below `where` against what its target takes."""
    if isinstance(node, dict):
        target = node.get("_target_")
        signature = read_signature(target) if isinstance(target, str) else None
        if signature is not None:
            if target in CLOSED:
                signature.open = False
            yield from _check_node(node, where, signature)
        for key, value in node.items():
            yield from _check_tree(value, f"{where}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _check_tree(value, f"{where}[{index}]")


def _check_node(node: dict[str, Any], where: str, signature: Signature) -> Iterator[UserError]:
    for key, value in node.items():
        full = f"{where}.{key}" if where else str(key)  # YAML's keys may be numbers
        if key in INSTANTIATE_KEYS:
            continue
        if full in OWNED:
            if value is not None:
                yield UserError(f"this setting belongs to {OWNED[full]}", where=full, remedy=f"remove {full}")
            continue
        if key not in signature.parameters:
            if not signature.open:
                yield unknown_key(full, [name for name in signature.parameters if f"{where}.{name}" not in OWNED])
            continue
        yield from _check_value(value, full, signature, key)


def _check_value(value: Any, full: str, signature: Signature, key: str) -> Iterator[UserError]:
    annotation, home = signature.parameters[key], signature.homes[key]
    if value == "???" or (isinstance(value, dict) and "_target_" in value) or _is_auto(full, value):
        return
    wanted = mismatch(value, annotation, home)
    if wanted:
        yield UserError(f"{value!r} is not {wanted}", where=full, remedy=f"give {full}={_example(wanted)}")
        return
    nested = nested_dataclass(annotation, home)
    if nested and isinstance(value, dict):
        definition, path, held = nested
        inner = signature_of(definition, path)
        for name, child in value.items() if held == "dict" else [("", value)]:
            child_key = f"{full}.{name}" if name else full
            if isinstance(child, dict) and "_target_" not in child:
                yield from _check_node(child, child_key, inner)


def _is_auto(key: str, value: Any) -> bool:
    """`auto` is ours where the library takes true or false."""
    return value == "auto" and key in ("trainer.gradient_checkpointing", "trainer.bf16")


def _example(wanted: str) -> str:
    for start, example in (("a whole number", "8"), ("a number", "0.1"), ("true", "true"), ("a list", "[a,b]")):
        if wanted.startswith(start):
            return example
    return wanted.removeprefix("one of ").split(", ")[0] if wanted.startswith("one of") else f"<{wanted}>"


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
