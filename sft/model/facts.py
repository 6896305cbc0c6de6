"""What is known about a model before its weights are loaded: family and size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from sft.config.errors import UserError
from sft.model.spec import Model
from sft.template.families import FAMILIES, Family, detect

# Fields of Family that a model's YAML may set.
_FACTS = (
    "template",
    "stop_tokens",
    "control_tokens",
    "target_modules",
    "system",
    "response_marker",
    "instruction_marker",
)


def family_of(model: Model, config: Any = None) -> Family:
    """The family of a model, with the facts of its YAML in place of the table's.

    Args:
        model: the spec.
        config: the model's own config (`load_config`); its `model_type` decides before the name does.

    Raises:
        UserError: `model.family` names no family.
    """
    if model.family:
        family = next((f for f in FAMILIES if f.name == model.family), None)
        if family is None:
            names = ", ".join(f.name for f in FAMILIES)
            raise UserError(f"no family is called {model.family}", where="model.family", remedy=f"one of {names}")
    else:
        family = detect(getattr(config, "model_type", None), model.name or getattr(config, "name_or_path", None))
    given = {name: getattr(model, name) for name in _FACTS if getattr(model, name) is not None}
    for name in ("stop_tokens", "control_tokens"):
        if name in given:
            given[name] = tuple(given[name])
    if model.tokenizer.padding_side:
        given["padding_side"] = model.tokenizer.padding_side
    return dataclasses.replace(family, **given)


def empty_model(config: Any, trust_remote_code: bool = False, **options: Any) -> Any:
    """The model of a config on the meta device: all modules and shapes without memory, in well under a second.

    Args:
        config: the model's own.
        trust_remote_code: run code from its repository.
        **options: as `from_config` takes them (`dtype`, `attn_implementation`).
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, **options)


def count_parameters(model: Any, trainable_only: bool = False) -> int:
    """The number of parameters of a model, tied ones once; packed 4-bit parameters are counted individually."""
    return sum(_size(p) for p in model.parameters() if p.requires_grad or not trainable_only)


def _size(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return int(state.shape.numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def stored_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of tensors in a file: those that share their memory (tied weights) count once."""
    return sum({each.data_ptr(): each.numel() * each.element_size() for each in tensors}.values())
