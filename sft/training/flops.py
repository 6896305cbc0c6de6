"""FLOPs that training a model needs, and the peak FLOPs of the hardware, for model FLOPs utilization (MFU).

Only necessary operations count: matrix products of real tokens (no padding), the output layer at trained positions,
causal attention within documents. Each product is done once in forward, once in backward for the gradient of the
inputs, and once more for that of the weights if they are trained. Recomputation (gradient checkpointing) does not
count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sft.model.base import base_of

# Dense bf16 matrix products, TFLOP/s, from NVIDIA's data sheets; the first name contained in the device's name.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "A40": 150.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L4": 121.0,
    "RTX A6000": 155.0,
    "RTX 6000 Ada": 364.0,
    "RTX 5090": 210.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


@dataclass(frozen=True)
class FlopsPerToken:
    """FLOPs of a training step, by the quantity they are proportional to.

    Attributes:
        per_token: per token.
        per_trained: per trained token (the output layer).
        per_pair: per pair of a token and an earlier one of its document (attention).
    """

    per_token: float
    per_trained: float
    per_pair: float

    def total(self, tokens: int, trained: int, attention_pairs: float) -> float:
        """FLOPs of this many tokens."""
        return self.per_token * tokens + self.per_trained * trained + self.per_pair * attention_pairs


def flops_per_token(model: Any) -> FlopsPerToken | None:
    """The FLOPs of training a model; None if it has weights that are not counted here (experts, convolutions)."""
    base = base_of(model)
    config = base.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return None
    output, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    in_output = {id(module) for module in output.modules()} if output is not None else set()
    per_token = per_trained = 0.0
    known = {id(parameter) for module in embeddings.modules() for parameter in module.parameters(recurse=False)}
    for module in base.modules():
        weight = getattr(module, "weight", None)
        size = _matrix_elements(module)
        if size:
            flops = 2.0 * size * (3 if weight.requires_grad else 2)  # type: ignore[union-attr]
            if id(module) in in_output:
                per_trained += flops
            else:
                per_token += flops
            known.add(id(weight))
    for parameter in base.parameters():
        if parameter.ndim > 1 and id(parameter) not in known and not _is_lookup_table(base, parameter):
            return None
    dimension = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = config.num_hidden_layers
    return FlopsPerToken(per_token, per_trained, 3.0 * 2 * 2 * heads * dimension * layers)


def attention_pairs(lengths: list[int]) -> float:
    """Number of pairs of a token and one at or before it, in documents of these lengths."""
    return sum(length * (length + 1) / 2 for length in lengths)


def peak_flops(devices: int = 1) -> float | None:
    """Peak dense bf16 FLOP/s of this many GPUs like this process's; None if unknown."""
    import torch

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((rate * 1e12 * devices for key, rate in PEAK_TFLOPS.items() if key in name), None)


def _matrix_elements(module: Any) -> int:
    """Number of elements of the matrix that a module multiplies with; 0 for any other module."""
    rows, columns = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if rows and columns and hasattr(module, "weight") and not hasattr(module, "base_layer"):
        return int(rows * columns)
    if type(module).__name__ == "Conv1D":  # GPT-2's linear layer
        return int(module.weight.numel())
    return 0


def _is_lookup_table(base: Any, parameter: Any) -> bool:
    """Whether a parameter is looked up and not multiplied: learned positions."""
    from torch.nn import Embedding

    return any(module.weight is parameter for module in base.modules() if isinstance(module, Embedding))
