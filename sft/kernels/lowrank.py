"""LoRA's low-rank branch in as few passes over memory as possible.

peft computes `base(x) + B(A(dropout(x))) * scaling`: under autocast it upcasts x to fp32 only for autocast to downcast
it again, and scaling and sum each pass over the layer's whole output, forward and backward. Here the product adds its
result itself, and scaling is applied where there are only r columns (Zhu et al. 2025, "LoRAFusion", for GPUs). The same
mathematics, with fewer roundings in between. If the base layer is a frozen linear one in the compute precision, both
are fused (see `adapted`).

The layer's own forward is kept for everything that is not supported here: variants (DoRA), several adapters, biases,
merged or disabled adapters, mixed precisions, sharded or hooked weights, and torch.compile, which fuses by itself.
"""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn

from sft.kernels import adapted
from sft.kernels.adapted import AdaptedLinear, Branch


def install(model: nn.Module) -> int:
    """Replace the forward of a model's LoRA layers where the result is the same; return their number."""
    from peft.tuners.lora.layer import Linear, LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer) and is_linear(module, Linear)]
    for layer, together in adapted.group(model, layers).items():
        layer.of_one_input = together  # type: ignore[assignment]
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def is_linear(layer: nn.Module, plain: type) -> bool:
    """Whether it is peft's layer on a linear one, plain or of bitsandbytes; subclasses compute something else."""
    module = type(layer).__module__
    return type(layer) is plain or (module == "peft.tuners.lora.bnb" and type(layer).__name__.startswith("Linear"))


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    name = None if args or kwargs else only_adapter(layer)
    if name is None or torch.compiler.is_compiling():
        return type(layer).forward(layer, x, *args, **kwargs)
    cast = autocast_dtype(x.device.type)
    found = partial(branch_of, dtype=cast or x.dtype, autocast=cast is not None)
    plain = found(layer)
    if plain is not None:
        return adapted.output(layer, x, plain, found)
    own = type(layer.base_layer) is nn.Linear  # its output is not used elsewhere
    return low_rank(layer, name, layer.base_layer(x), x, own)


def low_rank(layer: Any, name: str, base: torch.Tensor, x: torch.Tensor, own_output: bool) -> torch.Tensor:
    """`base` with what the adapter `name` of a peft layer adds for `x`.

    Args:
        own_output: nothing else sees `base`, so that it may be written into.
    """
    cast = autocast_dtype(x.device.type)
    dropout, scaling = layer.lora_dropout[name], float(layer.scaling[name])
    down, up = layer.lora_A[name], layer.lora_B[name]
    if base.dtype is not (cast or x.dtype) or (cast is None and down.weight.dtype is not x.dtype):
        x = layer._cast_input_dtype(x, down.weight.dtype)
        return (base + up(down(dropout(x))) * scaling).to(base.dtype)
    return _LowRank.apply(base, dropout(x), down.weight, up.weight, scaling, own_output)  # type: ignore[no-any-return]


def branch_of(layer: Any, dtype: torch.dtype, autocast: bool) -> AdaptedLinear | None:
    """The layer's matrices, if it is a frozen linear layer in `dtype` with a plain adapter on the same input."""
    name, base = only_adapter(layer), layer.base_layer
    if name is None or type(base) is not nn.Linear or not _is_plain(base, bias=True):
        return None
    dropout, down, up = layer.lora_dropout[name], layer.lora_A[name].weight, layer.lora_B[name].weight
    seen = isinstance(dropout, nn.Identity) or not dropout.training
    frozen = not any(each.requires_grad for each in base.parameters())
    same = base.weight.dtype is dtype and (autocast or down.dtype is up.dtype is dtype)
    if not (seen and frozen and same):
        return None
    return AdaptedLinear(base.weight, base.bias, (Branch(down, up, float(layer.scaling[name])),))


def only_adapter(layer: Any) -> str | None:
    """The only active adapter, if it is a plain one."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or len(names) != 1:
        return None
    (name,) = names
    if name in layer.lora_variant or not (_is_plain(layer.lora_A[name]) and _is_plain(layer.lora_B[name])):
        return None
    return str(name)


def _is_plain(linear: nn.Linear, bias: bool = False) -> bool:
    """Whether a linear layer is only its matrix, and possibly a `bias`."""
    hooked = linear._forward_pre_hooks or linear._forward_hooks or "forward" in linear.__dict__
    matrix = type(linear.weight.data) is torch.Tensor and linear.weight.ndim == 2
    return not hooked and matrix and (bias or linear.bias is None)


def autocast_dtype(device: str) -> torch.dtype | None:
    """The current autocast dtype of a device; None for no autocast."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


class _LowRank(torch.autograd.Function):
    """`base + x A' B' scaling`."""

    @staticmethod
    def forward(ctx: Any, base: Any, x: Any, down: Any, up: Any, scaling: float, own: bool) -> torch.Tensor:
        """The sum [..., columns of `up`], computed in place in `base` if that is the layer's `own`."""
        flat = x.reshape(-1, x.shape[-1]).to(base.dtype)
        a, b = down.to(flat.dtype), up.to(flat.dtype)
        inner = torch.mm(flat, a.t())
        ctx.save_for_backward(flat, a, b, inner)
        ctx.scaling, ctx.shape, ctx.dtypes = scaling, x.shape, (x.dtype, down.dtype, up.dtype)
        wide = base.reshape(-1, base.shape[-1])
        if not own:
            out = base.new_empty(base.shape)  # not a view: the model may write into it
            torch.addmm(wide, inner, b.t(), alpha=scaling, out=out.view(wide.shape))
            return out
        ctx.mark_dirty(base)
        wide.addmm_(inner, b.t(), alpha=scaling)
        return base

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        """Gradients of base, x, down and up, each in its own precision."""
        flat, a, b, inner = ctx.saved_tensors
        wide = grad.reshape(-1, grad.shape[-1])
        narrow = torch.mm(wide, b).mul_(ctx.scaling)
        to_x = torch.mm(narrow, a).view(ctx.shape).to(ctx.dtypes[0]) if ctx.needs_input_grad[1] else None
        to_down = torch.mm(narrow.t(), flat).to(ctx.dtypes[1]) if ctx.needs_input_grad[2] else None
        to_up = torch.mm(wide.t(), inner).mul_(ctx.scaling).to(ctx.dtypes[2]) if ctx.needs_input_grad[3] else None
        return grad, to_x, to_down, to_up, None, None
