"""Norms and rotary embeddings with fewer passes over memory, on the CPU in 16 bits.

PyTorch executes transformers' code one operation at a time, each a pass over the activations and one or more in the
backward pass, with fp32 copies in between. Here each has a backward pass of its own. For CUDA there are Liger's kernels
(`trainer.use_liger_kernel`).

Only functions that are verified to give the same result on random numbers are replaced, and only frozen norms in the
precision of their input. Everything else is computed by transformers' own code.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from types import MethodType
from typing import Any

import torch
from torch import nn

ROTATION = "apply_rotary_pos_emb"  # the function's name in each of transformers' models
WIDTH = 32  # for the random numbers
FLIPPED = 0.01  # fraction of results that may round differently because a sum is computed in another order


def install(model: nn.Module) -> tuple[int, int]:
    """Replace a model's norms and rotary functions where the result is the same; return how many of each were
    replaced."""
    # an instance-level forward is already ours, or accelerate's, which moves tensors between devices
    norms = [module for module in model.modules() if "forward" not in module.__dict__ and _is_norm(module)]
    for norm in norms:
        norm.forward = MethodType(_norm, norm)  # type: ignore[method-assign]
    rotating = 0
    for name in {type(module).__module__ for module in model.modules()}:
        file = sys.modules.get(name)
        rotation = getattr(file, ROTATION, None)
        ours = isinstance(rotation, partial) and rotation.func is _rotated
        if rotation is not None and not ours and _is_rotation(rotation):
            setattr(file, ROTATION, partial(_rotated, rotation))  # shared by all models of this kind
            rotating += 1
    return len(norms), rotating


def runs_on(x: torch.Tensor) -> str:
    """The type of the device on which a tensor is computed."""
    return x.device.type


def _is_norm(module: nn.Module) -> bool:
    kind: Any = type(module)
    return hasattr(module, "variance_epsilon") and hasattr(module, "weight") and _normalizes(kind)


@lru_cache
def _normalizes(kind: Any) -> bool:
    """Whether modules of a class compute an RMS norm: divide by the root mean square, round, and multiply by the
    weight."""
    x, weight = _numbers(2, WIDTH, WIDTH).bfloat16()
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
            norm: Any = kind(WIDTH, eps=0.25).bfloat16()
            norm.weight.copy_(weight[0])
            found = norm(x)
    except Exception:  # a class with a different constructor, whatever it raises
        return False
    want = _Norm.apply(x, weight[0], 0.25)
    same = getattr(norm, "variance_epsilon", None) == 0.25 and found.dtype is x.dtype and found.shape == x.shape
    return same and float((found != want).float().mean()) < FLIPPED


@lru_cache
def _is_rotation(function: Callable[..., Any]) -> bool:
    """Whether a function rotates the halves of queries and keys, as Llama's does."""
    if list(inspect.signature(function).parameters) != ["q", "k", "cos", "sin", "unsqueeze_dim"]:
        return False
    q, k, angles = _numbers(1, 2, 5, WIDTH), _numbers(1, 1, 5, WIDTH), _numbers(2, 1, 5, WIDTH)
    try:
        found = torch.cat(function(q, k, *angles), 1)
    except Exception:
        return False
    want = torch.cat([_Rotation.apply(x, *angles[:, None]) for x in (q, k)], 1)
    return found.shape == want.shape and torch.allclose(found, want, rtol=1e-5, atol=1e-6)


def _numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu")


def _here(*activations: torch.Tensor) -> bool:
    """Whether to use the replacement: on the CPU, in 16 bits, with a backward pass to come."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    return all(x.dtype.itemsize == 2 and x.requires_grad and runs_on(x) == "cpu" for x in activations)


def _norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    weight = module.weight
    plain = type(weight.data) is torch.Tensor and weight.shape == x.shape[-1:] and not weight.requires_grad
    if not plain or weight.dtype is not x.dtype or not _here(x):
        return type(module).forward(module, x)
    return _Norm.apply(x, weight, module.variance_epsilon)  # type: ignore[no-any-return]


def _rotated(original: Callable[..., Any], q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
    same = q.dtype is k.dtype is cos.dtype is sin.dtype and q.shape[-1] == k.shape[-1] == cos.shape[-1]
    if not same or not _here(q, k):
        return original(q, k, cos, sin, unsqueeze_dim)
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """`x` over its root mean square in fp32, rounded, times the weight."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = size.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return x.to(torch.float32, copy=True).mul_(scale).to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        """The gradient of x: that of the weighted norm, minus its component along x."""
        x, weight, scale = ctx.saved_tensors
        wide, through = x.float(), (grad * weight).float()
        along = (through * wide).sum(-1, keepdim=True).mul_(scale.pow(3).div_(x.shape[-1]))
        return through.mul_(scale).addcmul_(wide, along, value=-1).to(grad.dtype), None, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Each pair of a number in the first half and one in the second, rotated by its angle."""
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin.chunk(2, -1))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        """The gradient of x: rotated back."""
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin.chunk(2, -1)[::-1], -1), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sines: Sequence[torch.Tensor], way: int = 1) -> torch.Tensor:
    """`x cos`, plus what each half gets from the other by its sines [..., width / 2]."""
    out = x * cos
    (one, other), (to_one, to_other) = x.chunk(2, -1), out.chunk(2, -1)
    to_one.addcmul_(other, sines[0], value=-way)
    to_other.addcmul_(one, sines[1], value=way)
    return out
