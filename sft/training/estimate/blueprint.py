"""The model that a config will train, on the meta device: all modules and shapes, no weights, no memory."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from sft.kernels import elementwise, lowrank
from sft.model.adapters.attach import attach
from sft.model.adapters.existing import check_adapter, read_adapter_config
from sft.model.dtype import resolve_dtype
from sft.model.facts import empty_model
from sft.model.footprint import Footprint, footprint
from sft.model.spec import Model


@dataclass
class Blueprint:
    """A model with one of each kind of layer.

    Attributes:
        model: the model to train, on the meta device, with the first layer, one of each kind, and the last.
        layers: its list of layers.
        order: for every layer of the whole model, in order, the index in `layers` of the layer that represents it.
    """

    model: Any
    layers: nn.ModuleList
    order: list[int]

    def footprint(self) -> Footprint:
        """The parameters of the whole model."""
        counts = Counter(self.order)
        return footprint(self.model, {id(layer): counts[index] for index, layer in enumerate(self.layers)})


def layer_list(model: nn.Module) -> tuple[nn.Module, str] | None:
    """The module that contains the decoder's layers, and its attribute; None for a model without such a list.

    It is the longest list of modules of one class, which belongs to the text model.
    """
    found: tuple[nn.Module, str] | None = None
    longest = 0
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) > longest and len({type(c) for c in child}) == 1:
                found, longest = (module, name), len(child)
    return found


def shorten(model: nn.Module, uniform: bool = True) -> tuple[nn.ModuleList, list[int]]:
    """Remove all layers but the first, the first of each kind and the last from a model, in place.

    Args:
        uniform: whether layers of one kind are adapted in the same way; otherwise all layers are kept.

    Returns:
        The remaining layers, and for every original layer the index of the one that represents it.
    """
    place = layer_list(model)
    if place is None:
        return nn.ModuleList(), []
    owner, name = place
    layers = list(getattr(owner, name))
    kinds: list[Any] = [_kind(layer) for layer in layers] if uniform else list(range(len(layers)))
    inner = range(1, len(layers) - 1)
    first = {kind: min(i for i in inner if kinds[i] == kind) for kind in {kinds[i] for i in inner}}
    keep = sorted({0, len(layers) - 1, *first.values()})
    stands = {i: (first[kinds[i]] if i in inner else i) for i in range(len(layers))}
    left = nn.ModuleList(layers[i] for i in keep)
    setattr(owner, name, left)
    return left, [keep.index(stands[i]) for i in range(len(layers))]


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    return tuple(
        (name, type(m).__name__, *(tuple(p.shape) for p in m.parameters(recurse=False)))
        for name, m in layer.named_modules()
    )


def build_blueprint(
    model: Model,
    config: Any,
    quant: Any = None,
    lora: Any = None,
    *,
    targets: Any = "all-linear",
    rows: Sequence[int] = (),
) -> Blueprint:
    """The model that would be trained, as `load_model` and `attach` build it from the weights.

    Args:
        model: the spec.
        config: the model's own config.
        quant: a transformers.BitsAndBytesConfig, or None.
        lora: a peft.LoraConfig, or None for full fine-tuning.
        targets: modules to adapt if `lora` names none.
        rows: embedding rows that are trained.

    Raises:
        UserError: the adapter would cover nothing, or cannot be built on this base.
    """
    options: dict[str, Any] = {"dtype": resolve_dtype(model.dtype, trained=lora is None)}
    if model.attn_implementation == "eager":  # all others are fused kernels, which keep the same tensors
        options["attn_implementation"] = "eager"
    if model.adapter:
        lora = LoraConfig(**_plain(read_adapter_config(check_adapter(model.adapter))))
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _norms_of_nothing():
        empty = empty_model(config, model.trust_remote_code, **options)
        if quant is not None:
            _quantize(empty, quant)
        layers, order = shorten(empty, uniform=_uniform(lora))
        if lora is not None:
            lora = copy.deepcopy(lora)
            lora.init_lora_weights = True  # the others need the weights
        adapted, _ = attach(empty, lora, replace(model, adapter=None), target_modules=targets, new_rows=rows)
    lowrank.install(adapted)
    elementwise.install(adapted)
    adapted.config.use_cache = False
    return Blueprint(adapted, layers, order)


def _uniform(lora: Any) -> bool:
    """Whether an adapter treats all layers of one kind the same: none of its settings depends on a layer's index."""
    if lora is None:
        return True
    single = (
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "layer_replication",
        "target_parameters",
    )
    if any(getattr(lora, name, None) for name in single):
        return False
    names = [lora.target_modules, lora.exclude_modules, lora.modules_to_save]
    texts = [text for name in names if name is not None for text in ([name] if isinstance(name, str) else name)]
    return not any(character.isdigit() or character in "*[(" for text in texts for character in text)


def _quantize(model: Any, quant: Any) -> None:
    """Replace the layers that transformers would replace with quantized ones."""
    from transformers.quantizers import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(quant, pre_quantized=False)
    quantizer._process_model_before_weight_loading(model, device_map=None)
    model.requires_grad_(False)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """An adapter's stored settings that LoraConfig accepts."""
    known = {field.name for field in fields(LoraConfig)}
    return {
        name: value for name, value in settings.items() if name in known and name not in ("peft_type", "loftq_config")
    }


@contextmanager
def _norms_of_nothing() -> Iterator[None]:
    """DoRA starts from the norms of the weights, which quantized weights on the meta device do not have."""
    from peft.tuners.lora import dora

    before = dora.dequantize_module_weight

    def weight_of(module: Any) -> torch.Tensor:
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            return torch.empty((module.out_features, module.in_features), dtype=torch.float32, device="meta")
        return before(module)

    dora.dequantize_module_weight = weight_of  # type: ignore[assignment]
    try:
        yield
    finally:
        dora.dequantize_module_weight = before
