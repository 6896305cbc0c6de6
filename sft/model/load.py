"""Load tokenizer, config and weights of a model spec."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sft.config.errors import UserError
from sft.config.paths import expanded
from sft.hub.errors import loading
from sft.model.dtype import resolve_dtype
from sft.model.facts import family_of
from sft.model.quant import prepare_quantized, quantized_modules
from sft.model.spec import Model
from sft.model.tokens import set_pad_token, set_special_tokens
from sft.safety.model_files import check_sizes

SMALLEST_VOCABULARY = 100


def load_config(model: Model) -> Any:
    """The model's own config, from its repository or directory.

    Raises:
        UserError: it cannot be found or read.
    """
    name = model.locate()
    check_sizes(name)
    with loading(name):
        return AutoConfig.from_pretrained(
            name, revision=model.revision or "main", trust_remote_code=model.trust_remote_code
        )


def load_tokenizer(model: Model, config: Any = None) -> Any:
    """The tokenizer, with padding side, pad token and the spec's special tokens set.

    An existing adapter that is trained further brings its own tokenizer. Ids added to the vocabulary are recorded on
    the tokenizer (`sft.model.tokens.added_rows`), because their embeddings have to be trained.

    Args:
        model: the spec.
        config: the model's config if it is already loaded.

    Raises:
        UserError: it cannot be found or read.
    """
    spec, base = model.tokenizer, model.locate()
    name = _tokenizer_source(model, base)
    trust = model.trust_remote_code if spec.trust_remote_code is None else spec.trust_remote_code
    revision = model.revision if name == base and model.revision else "main"
    check_sizes(name)
    with loading(name, where="model.tokenizer.name" if spec.name else "model.name"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust)
    _check_vocabulary(tokenizer, name)
    family = family_of(model, config if config is not None else load_config(model))
    tokenizer.padding_side = family.padding_side
    set_special_tokens(tokenizer, spec.special_tokens)
    set_pad_token(tokenizer)
    return tokenizer


def load_model(
    model: Model, quant: Any = None, *, trained: bool = False, config: Any = None, device: str | None = None
) -> Any:
    """The base model in eval mode, in its precision, quantized if requested, on its device.

    Args:
        model: the spec.
        quant: a transformers.BitsAndBytesConfig, or None.
        trained: the base weights themselves will be trained (`lora=none`), see `resolve_dtype`.
        config: the model's config if it is already loaded.
        device: "cpu", "cuda:1", ...; the spec's device_map wins; by default the process's own GPU, else the CPU.

    Raises:
        UserError: it cannot be found, read or quantized, or does not support this attention.
    """
    name = model.locate()
    options: dict[str, Any] = {"dtype": resolve_dtype(model.dtype, trained=trained), "use_safetensors": True}
    if model.attn_implementation and model.attn_implementation != "varlen":  # to which training switches, see layout
        options["attn_implementation"] = model.attn_implementation
    if quant is not None:
        _check_quantizable(quant)
        options["quantization_config"] = quant
    place = model.device_map if model.device_map is not None else _own_device(device)
    if place is not None:
        options["device_map"] = place
    if config is not None:
        options["config"] = config
    with loading(name):
        both: Any = AutoModelForCausalLM.from_pretrained(
            name,
            revision=model.revision or "main",
            trust_remote_code=model.trust_remote_code,
            output_loading_info=True,
            **options,
        )
    loaded, found = both
    _check_complete(found["missing_keys"], name)
    loaded.name_or_path = name  # becomes base_model_name_or_path of adapters
    set_use_cache(loaded, model.use_cache)
    if quant is not None:
        if not quantized_modules(loaded):
            raise UserError(f"nothing in {name} could be quantized", where="quant", remedy="quant=none")
        prepare_quantized(loaded)
    return loaded


def set_use_cache(model: Any, value: bool) -> None:
    """Set whether forward passes keep keys and values; also in the text part of a multimodal model."""
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if hasattr(config, "use_cache"):
            config.use_cache = value


def _tokenizer_source(model: Model, base: str) -> str:
    if model.tokenizer.name:
        path = expanded(model.tokenizer.name)
        return str(path.resolve()) if path.is_dir() else model.tokenizer.name
    if model.adapter and (expanded(model.adapter) / "tokenizer_config.json").is_file():
        return str(expanded(model.adapter).resolve())
    return base


def _check_vocabulary(tokenizer: Any, name: str) -> None:
    """Refuse the empty tokenizer that transformers silently creates where the directory has none."""
    if len(tokenizer) < SMALLEST_VOCABULARY:
        raise UserError(
            f"{name} holds no tokenizer (its vocabulary has {len(tokenizer)} tokens)",
            where="model.tokenizer.name",
            remedy="put the tokenizer's files next to the weights, or name another: model.tokenizer.name=HUB_ID_OR_DIRECTORY",
        )


def _check_complete(missing: Any, name: str) -> None:
    """Refuse incomplete checkpoints, whose missing weights transformers would initialize randomly."""
    if missing:
        some = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        raise UserError(
            f"{name} lacks {len(missing)} of the model's weights, which would be random: {some}",
            where="model.name",
            remedy="use a complete checkpoint of a causal language model",
        )


def _own_device(device: str | None) -> dict[str, str] | None:
    """A device map for loading directly onto one device; None without CUDA, where there is only one."""
    if device is not None:
        return {"": device}
    if torch.cuda.is_available():
        return {"": f"cuda:{os.environ.get('LOCAL_RANK', torch.cuda.current_device())}"}
    return None


def _check_quantizable(quant: Any) -> None:
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "quantization needs bitsandbytes", where="quant", remedy="pip install bitsandbytes, or quant=none"
        )
    if not (getattr(quant, "load_in_4bit", False) or getattr(quant, "load_in_8bit", False)):
        raise UserError(
            "neither load_in_4bit nor load_in_8bit is set", where="quant", remedy="quant=nf4, quant=int8 or quant=none"
        )
