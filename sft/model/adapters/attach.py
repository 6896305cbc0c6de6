"""Attach a new LoRA adapter to a base model, or continue training an existing one."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

import peft
import torch

from sft.config.errors import UserError
from sft.model.adapters.coverage import NOT_TEXT, Coverage, adaptable_modules, candidates, coverage_of
from sft.model.adapters.existing import (
    check_adapter,
    layers_without_bias,
    load_adapter,
    no_bias,
    quiet,
    read_adapter_config,
    stored_rows,
)
from sft.model.adapters.initial import keep_initial, loftq_start
from sft.model.adapters.names import no_match, refuse_unmatched, refuse_unskipped
from sft.model.embeddings import embedding_names, is_tied
from sft.model.load import set_use_cache
from sft.model.quant import quantized_modules
from sft.model.spec import MUTATING, Model

log = logging.getLogger(__name__)
_EMBEDDINGS = {"embed_tokens", "wte", "lm_head"}


def attach(
    model: Any,
    lora: Any,
    spec: Model,
    *,
    target_modules: str | Sequence[str] = "all-linear",
    new_rows: Sequence[int] = (),
    seed: int | None = None,
) -> tuple[Any, Coverage]:
    """Make the model trainable: a fresh adapter, an existing one, or all its weights.

    Args:
        model: the base model from `load_model`.
        lora: a peft.LoraConfig, which is not changed; None for full fine-tuning.
        spec: the model's spec; training continues from its `adapter` if given, and `lora` then only enables adapters.
        target_modules: the modules to adapt where `lora` names none (`Family.target_modules`).
        new_rows: embedding rows to train and save with the adapter (`fit_embeddings`).
        seed: set before the adapter is initialized, so that it does not depend on earlier random numbers.

    Returns:
        The model to train (a PeftModel, or the base itself) and its trainable parts.

    Raises:
        UserError: the adapter would cover nothing, or cannot be built on this base.
    """
    if seed is not None:
        torch.manual_seed(seed)
    if spec.adapter:
        return _continue(model, spec, new_rows)
    if lora is None:
        if quantized_modules(model):
            raise UserError("quantized weights cannot be trained", where="lora", remedy="lora=r16, or quant=none")
        model.requires_grad_(True)
        return model, coverage_of(model)
    config = _complete(copy.deepcopy(lora), model, spec, target_modules, new_rows)
    _check_start(config, model)
    refuse_unmatched(config, model)
    loftq = config.init_lora_weights == "loftq"
    if loftq:
        config.init_lora_weights, config.loftq_config = True, {}
    with _peft_errors(model), quiet():
        adapted = peft.get_peft_model(model, config)
    if lacking := layers_without_bias(adapted):
        raise no_bias(lacking)
    if loftq:
        loftq_start(adapted, spec)
    keep_initial(adapted, config)
    return adapted, coverage_of(adapted)


def refuse_names(
    lora: Any, quant: Any, model: Any, spec: Model, target_modules: str | Sequence[str] = "all-linear"
) -> None:
    """Refuse names and patterns that match nothing in a model, before its weights are loaded.

    Args:
        lora: a peft.LoraConfig, which is not changed; None for full fine-tuning.
        quant: a transformers.BitsAndBytesConfig, or None.
        model: without weights (`sft.model.facts.empty_model`).
        spec, target_modules: as for `attach`.

    Raises:
        UserError: there are some.
    """
    refuse_unskipped(quant, model)
    if lora is not None and not spec.adapter:
        refuse_unmatched(_complete(copy.deepcopy(lora), model, spec, target_modules, ()), model)


def changes_base(lora: Any, spec: Model, new_rows: Sequence[int] = ()) -> bool:
    """Whether a job with this adapter modifies the base model's own weights, so that it cannot share them."""
    if lora is None or new_rows or spec.adapter:
        return True
    start = str(lora.init_lora_weights)
    return (
        start.startswith((*MUTATING, "loftq"))
        or lora.bias != "none"
        or bool(lora.modules_to_save)
        or bool(lora.layer_replication)
    )


def _continue(model: Any, spec: Model, new_rows: Sequence[int]) -> tuple[Any, Coverage]:
    """Load an existing adapter for further training, in fp32, whatever its stored precision."""
    path = check_adapter(spec.adapter or "")
    trained = read_adapter_config(path)
    if trained.get("base_model_name_or_path") != model.name_or_path:
        log.warning(
            "the adapter was trained on %s, and training continues on %s",
            trained.get("base_model_name_or_path"),
            model.name_or_path,
        )
    if lacking := sorted(set(new_rows) - set(stored_rows(trained))):
        raise UserError(
            f"the adapter trains no embedding rows for the new tokens with ids {lacking}",
            where="model.adapter",
            remedy="keep the tokens and the template it was trained with, or start a new adapter",
        )
    with _peft_errors(model), quiet():
        adapted = load_adapter(model, path, trainable=True)
    keep_initial(adapted, adapted.peft_config["default"])
    return adapted, coverage_of(adapted)


def detach(adapted: Any) -> Any:
    """The base of a PeftModel as it was before `attach`, ready for another adapter on the same base."""
    base = adapted.unload()
    for name in ("peft_config", "_hf_peft_config_loaded"):
        base.__dict__.pop(name, None)
    for module in base.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    for parameter in base.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    if base.is_gradient_checkpointing:
        base.gradient_checkpointing_disable()
    set_use_cache(base, False)
    return base.eval()


def _complete(config: Any, model: Any, spec: Model, target_modules: str | Sequence[str], rows: Sequence[int]) -> Any:
    """Fill in what the config leaves open: task, base, targets, and the rows of new tokens."""
    config.task_type = peft.TaskType.CAUSAL_LM
    config.base_model_name_or_path, config.revision = model.name_or_path, spec.revision
    config.inference_mode = False
    if config.target_modules is None and not config.target_parameters:
        config.target_modules = target_modules if isinstance(target_modules, str) else set(target_modules)
    if config.target_modules == "all-linear" and config.layers_to_transform is not None:
        config.target_modules = set(candidates(model))  # peft respects layers_to_transform only with a list of names
    if config.exclude_modules is None and any(re.fullmatch(NOT_TEXT, name) for name, _ in model.named_modules()):
        config.exclude_modules = NOT_TEXT
    names = [name for name, _ in adaptable_modules(model)]
    config.fan_in_fan_out = bool(names) and all(type(m).__name__ == "Conv1D" for _, m in adaptable_modules(model))
    whole = set(config.modules_to_save or ())
    if is_tied(model) and whole & _EMBEDDINGS:
        # trained separately, tied input and output would differ: train one, and tie the other to it
        config.modules_to_save = sorted(whole - _EMBEDDINGS | {embedding_names(model)[0].rpartition(".")[2]})
        config.ensure_weight_tying = True
    elif rows:
        _train_rows(config, model, list(rows))
    return config


def _train_rows(config: Any, model: Any, rows: list[int]) -> None:
    """Train and save the new tokens' embeddings: single rows, or the whole layer where that is not possible."""
    whole = set(config.modules_to_save or ())
    output = model.get_output_embeddings()
    indices: dict[str, list[int]] = {}
    for name in embedding_names(model):
        last = name.rpartition(".")[2]
        if name in whole or last in whole:
            continue
        if output is not None and model.get_submodule(name) is output and output.bias is not None:
            whole.add(last)  # peft's row-wise wrapper would drop the bias
        else:
            indices[name] = rows
    config.modules_to_save = sorted(whole) or None
    if indices:
        config.trainable_token_indices = {**indices, **(config.trainable_token_indices or {})}


def _check_start(config: Any, model: Any) -> None:
    """Refuse initializations of the adapter that this base does not allow."""
    start, quantized = str(config.init_lora_weights), bool(quantized_modules(model))
    if start == "loftq" and not quantized:
        raise UserError(
            "LoftQ initializes an adapter from the quantization error, and this base is not quantized",
            where="lora.init_lora_weights",
            remedy="quant=nf4, or lora=r16",
        )
    if start.startswith(MUTATING) and quantized:
        raise UserError(
            f"{start} moves a part of the base weights into the adapter, which is not possible when they are quantized",
            where="lora.init_lora_weights",
            remedy="quant=none, or lora=loftq",
        )
    if start == "olora" and config.fan_in_fan_out:
        raise UserError(
            f"OLoRA does not support the transposed layers of {type(model).__name__}",
            where="lora.init_lora_weights",
            remedy="lora=pissa, or lora=r16",
        )
    if start.startswith(MUTATING) and config.use_dora:
        raise UserError(
            f"a DoRA adapter initialized by {start} cannot be converted to load on the plain base",
            where="lora.use_dora",
            remedy="lora=dora, or lora.use_dora=false",
        )


@contextlib.contextmanager
def _peft_errors(model: Any) -> Iterator[None]:
    """Turn peft's errors about the config into UserErrors."""
    try:
        yield
    except (ValueError, TypeError, ImportError, NotImplementedError, re.error) as error:
        text = " ".join(str(error).split())
        if "arget modules" in text and ("not found" in text or "No modules" in text):
            found = re.search(r"(?:arget modules )(.*?)(?: not found|$)", text)
            raise no_match([found.group(1).strip(" '\"{}") if found else "that"], model) from error
        raise UserError(text, where="lora", remedy="see the keys with: --cfg job --package lora") from error
