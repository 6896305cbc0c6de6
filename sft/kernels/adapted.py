"""Linear layers with their adapters in one go, and those that are given the same input together.

Query, key and value take the same hidden states, and so do the two halves of a gated feed-forward layer. Together their
low-rank products are one, of columns enough for the machine to be quick at, and what their input's gradient gets from
each layer and from each adapter is added by the products themselves (Zhu et al. 2025, "LoRAFusion", for GPUs).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

# what transformers' models call the layers of one parent that are given the same input
OF_ONE_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Adapted(NamedTuple):
    """A frozen linear layer and its adapter: `x weight' + bias + x down' up' scaling`."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    down: torch.Tensor
    up: torch.Tensor
    scaling: float


def group(model: nn.Module, layers: Sequence[nn.Module]) -> dict[nn.Module, tuple[nn.Module, ...]]:
    """Of each of the layers, those that are given the same input, itself among them."""
    found: dict[nn.Module, tuple[nn.Module, ...]] = {layer: (layer,) for layer in layers}
    for parent in model.modules():
        for names in OF_ONE_INPUT:
            together = tuple(layer for name in names if (layer := getattr(parent, name, None)) in found)
            found.update(dict.fromkeys(together, together))
    return found


def compute(x: torch.Tensor, layers: Sequence[Adapted]) -> tuple[torch.Tensor, ...]:
    """What each of the layers makes of `x` [..., columns], in the precision of their weights."""
    matrices = [each for layer in layers for each in layer[:4]]
    return _Together.apply(x, tuple(layer.scaling for layer in layers), *matrices)  # type: ignore[no-any-return]


def output(layer: Any, x: torch.Tensor, adapted: Adapted, found: Callable[[Any], Adapted | None]) -> torch.Tensor:
    """What the layer makes of `x`; layers of the same input, which are asked next, are computed with it.

    Args:
        layer: one with `of_one_input`, see `group`.
        adapted: what it is.
        found: what another one is; None, if that is no such layer at the moment.
    """
    if len(layer.of_one_input) == 1 or not torch.is_grad_enabled() or x.is_inference():
        return compute(x, [adapted])[0]
    done = _DONE.take(layer, x, adapted)
    if done is not None:
        return done
    others = {each: found(each) for each in layer.of_one_input}
    if None in others.values():
        return compute(x, [adapted])[0]
    layers: dict[Any, Any] = others
    outputs = dict(zip(layers, compute(x, list(layers.values())), strict=True))
    own = outputs.pop(layer)
    _DONE.keep(x, {each: (_state(x, layers[each]), out) for each, out in outputs.items()})
    return own


class _Done(threading.local):
    """What this thread has computed for layers that were not asked yet."""

    x: torch.Tensor | None = None
    outputs: dict[Any, tuple[tuple[Any, ...], torch.Tensor]] = {}

    def keep(self, x: torch.Tensor, outputs: dict[Any, Any]) -> None:
        self.x, self.outputs = x, outputs

    def take(self, layer: Any, x: torch.Tensor, adapted: Adapted) -> torch.Tensor | None:
        """The layer's output, once; None if it was computed of anything but what there is now."""
        if self.x is not x or layer not in self.outputs:
            return None
        state, out = self.outputs.pop(layer)
        if not self.outputs:
            self.x = None
        return out if state == _state(x, adapted) else None


_DONE = _Done()


def _state(x: torch.Tensor, adapted: Adapted) -> tuple[Any, ...]:
    """Of input and layer: the same as long as neither was replaced nor written to."""
    tensors = [x, *(each for each in adapted[:4] if each is not None)]
    return (adapted.scaling, *((id(each), each._version) for each in tensors))


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, scalings: tuple[float, ...], *matrices: Any) -> tuple[torch.Tensor, ...]:
        """Of each layer [..., its columns]; `matrices` are weight, bias, down and up of each."""
        weights, biases, downs, ups = (matrices[at::4] for at in range(4))
        dtype = weights[0].dtype
        flat, ranks = x.reshape(-1, x.shape[-1]).to(dtype), [len(down) for down in downs]
        down = (downs[0] if len(downs) == 1 else torch.cat(downs)).to(dtype)
        inner, outputs, narrow = torch.mm(flat, down.t()), [], [up.to(dtype) for up in ups]
        for weight, bias, up, part, scaling in zip(
            weights, biases, narrow, inner.split(ranks, 1), scalings, strict=True
        ):
            out = flat.new_empty((*x.shape[:-1], len(weight)))  # no view: the model may write into it
            rows = out.view(-1, len(weight))
            if bias is None:
                torch.mm(flat, weight.t(), out=rows)
            else:
                torch.addmm(bias, flat, weight.t(), out=rows)
            outputs.append(out)
            rows.addmm_(part, up.t(), alpha=scaling)
        ctx.save_for_backward(flat, down, inner, *weights, *narrow)
        ctx.scalings, ctx.ranks, ctx.shape = scalings, ranks, x.shape
        ctx.dtypes = x.dtype, downs[0].dtype, ups[0].dtype
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Gradients of x and of each down and up, each in its own precision."""
        flat, down, inner, *rest = ctx.saved_tensors
        weights, ups = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        wide = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        parts = [torch.mm(grad, up).mul_(scaling) for grad, up, scaling in zip(wide, ups, ctx.scalings, strict=True)]
        narrow = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        to_x = None
        if ctx.needs_input_grad[0]:
            total = torch.mm(narrow, down)
            for grad, weight in zip(wide, weights, strict=True):
                total.addmm_(grad, weight)
            to_x = total.view(ctx.shape).to(ctx.dtypes[0])
        to_downs = torch.mm(narrow.t(), flat).to(ctx.dtypes[1]).split(ctx.ranks)
        to_matrices: list[torch.Tensor | None] = []
        for grad, part, scaling, to_down in zip(wide, inner.split(ctx.ranks, 1), ctx.scalings, to_downs, strict=True):
            to_matrices += [None, None, to_down, torch.mm(grad.t(), part).mul_(scaling).to(ctx.dtypes[2])]
        return to_x, None, *to_matrices
