"""Floating-point operations that training a model needs, and the share of the hardware's rate that a run makes of them.

Counted is what the mathematics asks for: matrix products of the tokens that are there (no padding), the output layer at
trained positions alone, attention within documents and causal. Each product is done forward; backward once more for
the inputs' gradient, and once more for the weights' where they are trained. What is computed twice for memory's sake
(checkpointing) is not counted twice: this is model FLOP utilization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sft.model.base import base_of

# Dense bf16 matrix products, TFLOP/s, of NVIDIA's data sheets; the first name that a device's contains.
RATES = {
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
class Work:
    """Operations of one training step, by what they are proportional to.

    Attributes:
        per_token: of every token.
        per_trained: of every trained token (the output layer).
        per_pair: of every pair of a token and one before it in its document (attention).
    """

    per_token: float
    per_trained: float
    per_pair: float

    def operations(self, tokens: int, trained: int, pairs: float) -> float:
        """Of so many tokens."""
        return self.per_token * tokens + self.per_trained * trained + self.per_pair * pairs


def work_of(model: Any) -> Work | None:
    """What a model's training needs; None where it has weights that are not counted here (experts, convolutions)."""
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
        size = _product(module)
        if size:
            operations = 2.0 * size * (3 if weight.requires_grad else 2)  # type: ignore[union-attr]
            if id(module) in in_output:
                per_trained += operations
            else:
                per_token += operations
            known.add(id(weight))
    for parameter in base.parameters():
        if parameter.ndim > 1 and id(parameter) not in known and not _is_table(base, parameter):
            return None
    dimension = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = config.num_hidden_layers
    return Work(per_token, per_trained, 3.0 * 2 * 2 * heads * dimension * layers)


def pairs(lengths: list[int]) -> float:
    """Pairs of a token and one at or before it, over documents of so many tokens."""
    return sum(length * (length + 1) / 2 for length in lengths)


def hardware_rate(devices: int = 1) -> float | None:
    """Operations per second of dense bf16 products that so many GPUs like this process's are made for; None: not known."""
    import torch

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((rate * 1e12 * devices for key, rate in RATES.items() if key in name), None)


def _product(module: Any) -> int:
    """Elements of the matrix that a module multiplies with; 0 for any other module."""
    rows, columns = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if rows and columns and hasattr(module, "weight") and not hasattr(module, "base_layer"):
        return int(rows * columns)
    if type(module).__name__ == "Conv1D":  # GPT-2's linear layer
        return int(module.weight.numel())
    return 0


def _is_table(base: Any, parameter: Any) -> bool:
    """Whether a parameter is looked up, not multiplied: learned positions."""
    from torch.nn import Embedding

    return any(module.weight is parameter for module in base.modules() if isinstance(module, Embedding))
