"""Bytes of a model's weights, quantized ones as bitsandbytes stores them, computed without the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

BLOCK = 64  # weights of a 4-bit layer per quantization constant
NESTED_BLOCK = 256  # constants per second-level constant, in double quantization
CODE = 16  # levels of 4 bits, fp32
NESTED_CODE = 256  # levels of 8 bits, fp32


@dataclass(frozen=True)
class Parameter:
    """A trained parameter.

    Attributes:
        name: path of its module and its own name.
        shape: of the tensor.
        itemsize: bytes per element.
        embedding: whether it is an embedding, for which 8-bit optimizers keep 32-bit states.
        copies: number of such parameters.
    """

    name: str
    shape: tuple[int, ...]
    itemsize: int
    embedding: bool = False
    copies: int = 1

    @property
    def numel(self) -> int:
        """Elements of one."""
        return prod(self.shape)


@dataclass(frozen=True)
class Footprint:
    """The memory of a model, in bytes unless noted otherwise.

    Attributes:
        weights: of the base, not quantized; including buffers.
        quantized: of the base, in 4 or 8 bits, including their constants.
        adapter: trained weights in addition to the base.
        parameters: number of the base's parameters.
        trained: the parameters that are trained.
    """

    weights: int
    quantized: int
    adapter: int
    parameters: int
    trained: tuple[Parameter, ...]

    @property
    def gradients(self) -> int:
        """Bytes of all gradients."""
        return sum(p.numel * p.itemsize * p.copies for p in self.trained)

    @property
    def trained_parameters(self) -> int:
        """The number of trained parameters."""
        return sum(p.numel * p.copies for p in self.trained)


def footprint(model: Any, copies: dict[int, int] | None = None) -> Footprint:
    """The footprint of a model on any device; layers on the meta device that will be quantized count as quantized.

    Args:
        model: with its adapter, if any.
        copies: module (by id) -> number of modules of the real model that it represents; 1 by default.
    """
    adapted = hasattr(model, "peft_config")
    weights = quantized = adapter = parameters = 0
    trained: list[Parameter] = []
    seen: set[int] = set()
    for name, module, times in _modules(model, "", 1, copies or {}):
        for own, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            size, path = tensor.numel() * tensor.element_size(), f"{name}.{own}".lstrip(".")
            if own == "weight" and type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
                quantized += times * quantized_bytes(module)
                parameters += times * module.in_features * module.out_features
            elif tensor.requires_grad:
                embedding = type(module).__name__ == "Embedding"
                trained.append(Parameter(path, tuple(tensor.shape), tensor.element_size(), embedding, times))
                adapter += times * size if adapted else 0
                weights += 0 if adapted else times * size
                parameters += 0 if adapted else times * tensor.numel()
            else:
                weights += times * size
                parameters += times * tensor.numel() if own in module._parameters else 0
    return Footprint(weights, quantized, adapter, parameters, tuple(trained))


def quantized_bytes(layer: Any) -> int:
    """Bytes of the weight of a `Linear4bit` or `Linear8bitLt`, with its constants.

    4 bits: half a byte a weight, an fp32 constant for each 64; or, double, one of 8 bits for each 64, and of these an
    fp32 one for each 256 (QLoRA, https://arxiv.org/abs/2305.14314). 8 bits: a byte a weight, an fp32 constant a row.
    """
    count = layer.in_features * layer.out_features
    if type(layer).__name__ == "Linear8bitLt":
        return count + 4 * layer.out_features
    blocks = -(-count // BLOCK)
    constants = 4 * blocks
    if layer.weight.compress_statistics:
        constants = blocks + 4 * -(-blocks // NESTED_BLOCK) + 4 + 4 * NESTED_CODE
    return -(-count // 2) + constants + 4 * CODE


def _modules(module: Any, name: str, times: int, copies: dict[int, int]) -> Iterator[tuple[str, Any, int]]:
    times *= copies.get(id(module), 1)
    yield name, module, times
    for child_name, child in module.named_children():
        yield from _modules(child, f"{name}.{child_name}".lstrip("."), times, copies)
