"""Substitutes for operations that cannot run on the meta device; they allocate and keep exactly what the originals do.

Attention kernels and autocast depend on the device, indexing depends on values, and quantized weights have no meta
form. Everything else of a model runs unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sft.kernels import cross_entropy as loss
from sft.kernels import elementwise, lowrank
from sft.kernels.causal import kept_probabilities

_PRODUCTS = {
    functional.linear,
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.mm,
    torch.bmm,
    torch.baddbmm,
    torch.addmm,
    functional.scaled_dot_product_attention,
}
_IN_FP32 = {functional.layer_norm, functional.softmax, torch.softmax, functional.cross_entropy, functional.log_softmax}


class OnMeta(TorchFunctionMode):
    """Run a model on the meta device as on `device`.

    Args:
        device: "cpu" or "cuda", which decides the kernels.
        chosen: number of positions selected by a boolean mask of a whole batch.
        autocast: the dtype of matrix products; None for no autocast.
    """

    def __init__(self, device: str, chosen: int, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.device, self.chosen, self.autocast = device, chosen, autocast
        self.casts: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.__bool__ and args[0].is_meta:
            return True  # models test whether a mask is all ones
        if func is torch.Tensor.__getitem__ and _is_mask(args[1]):
            return func(
                args[0], tuple(torch.empty(self.chosen, dtype=torch.long, device="meta") for _ in args[1].shape)
            )
        if self.autocast is not None:
            if func in _PRODUCTS:
                args, kwargs = _mapped(self._cast, args, kwargs)
            elif func in _IN_FP32:
                args, kwargs = _mapped(_widen, args, kwargs)
        if func is functional.scaled_dot_product_attention:
            return attention(self.device, *args, **kwargs)
        if func is functional.dropout and self.device == "cuda":
            return _fused_dropout(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """As autocast does: a trained weight is cast once per step, and the copy is cached."""
        if tensor.dtype is not torch.float32:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(self.autocast)
        if id(tensor) not in self.casts:
            self.casts[id(tensor)] = tensor.to(self.autocast)
        return self.casts[id(tensor)]


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype is torch.bool and index.is_meta


def _mapped(change: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    def one(value: Any) -> Any:
        return change(value) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tuple(one(a) for a in args), {name: one(value) for name, value in kwargs.items()}


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float()


def _fused_dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """CUDA's dropout keeps a mask of one byte per element; the CPU's has the input's dtype."""
    return torch.native_dropout(input, p, training)[0] if training and p > 0 else input


# -- attention ---------------------------------------------------------------------------------------------------------
def attention(
    device: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Scaled dot product attention as the training kernels do it: only `causal` keeps scores."""
    if attn_mask is not None and attn_mask.dtype is torch.bool:  # the fused kernels add the mask
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device="meta")
    return _Attention.apply(device, query, key, value, attn_mask)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, device: str, query: Any, key: Any, value: Any, mask: Any) -> torch.Tensor:
        """The output; saves what the kernels save."""
        batch, heads, length, _ = query.shape
        out = torch.empty((batch, length, heads, value.shape[-1]), dtype=query.dtype, device="meta").transpose(1, 2)
        if device == "cpu" and query.dtype.itemsize == 2:  # see `sft.kernels.causal`
            sums = torch.empty((batch, heads, kept_probabilities(length)), dtype=query.dtype, device="meta")
        else:
            sums = torch.empty((batch, heads, length), dtype=torch.float32, device="meta")
        ctx.save_for_backward(query, key, value, out, sums, mask)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        """Gradients of query, key and value."""
        query, key, value, *_ = ctx.saved_tensors
        return None, torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


# -- quantized layers --------------------------------------------------------------------------------------------------
class _Quantized(torch.autograd.Function):
    """A product with weights that are dequantized in forward and backward, and kept in neither."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: tuple[int, int], keeps: bool, bias: Any) -> torch.Tensor:
        """The product; `x` is saved if the layer saves it."""
        ctx.shape, ctx.kept = shape, x if keeps else None
        weight = torch.empty(shape, dtype=x.dtype, device="meta")
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        """The gradient of `x`."""
        weight = torch.empty(ctx.shape, dtype=grad.dtype, device="meta")
        return torch.matmul(grad, weight), None, None, None


def quantized_linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Allocate what bitsandbytes' `Linear4bit` and `Linear8bitLt` do; the 8-bit one keeps its input."""
    eight = type(module).__name__ == "Linear8bitLt"
    dtype = x.dtype
    wanted = None if eight else module.compute_dtype
    out = _Quantized.apply(x if wanted is None else x.to(wanted), tuple(module.weight.shape), eight, module.bias)
    return out.to(dtype)


@contextmanager
def computing_on(device: str, autocast: torch.dtype | None) -> Iterator[None]:
    """Within the block, queries for the device or for autocast return these instead of the meta device's."""
    before = lowrank.autocast_dtype, loss.chunk_elements, elementwise.runs_on
    lowrank.autocast_dtype = lambda _: autocast  # type: ignore[assignment]
    loss.chunk_elements = lambda _: before[1](device)  # type: ignore[assignment]
    elementwise.runs_on = lambda _: device  # type: ignore[assignment]
    try:
        yield
    finally:
        lowrank.autocast_dtype, loss.chunk_elements, elementwise.runs_on = before  # type: ignore[assignment]


@contextmanager
def quantized_layers() -> Iterator[None]:
    """Within the block, quantized layers of all models use their substitute."""
    try:
        from bitsandbytes.nn import Linear4bit, Linear8bitLt
    except ImportError:
        yield
        return
    before = [(kind, kind.forward) for kind in (Linear4bit, Linear8bitLt)]
    for kind, _ in before:
        kind.forward = quantized_linear  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        for kind, forward in before:
            kind.forward = forward  # type: ignore[method-assign]
