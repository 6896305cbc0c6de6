"""Linear layers fused with their adapters, and layers with the same input computed together.

Query, key and value take the same hidden states, and so do the two halves of a gated feed-forward layer. Their low-rank
products are combined into one with enough columns to be efficient, and the contributions of each layer and adapter to
the input's gradient are accumulated by the products themselves (Zhu et al. 2025, "LoRAFusion", for GPUs).

A layer may have several adapters, each for some of the rows of its input: those of the jobs that train together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

# names in transformers' models of sibling layers that get the same input
OF_ONE_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
ALL = slice(None)


class Branch(NamedTuple):
    """An adapter: `x[rows] down' up' scaling`, `rows` being counted over all but the last dimension."""

    down: torch.Tensor
    up: torch.Tensor
    scaling: float
    rows: slice = ALL


class AdaptedLinear(NamedTuple):
    """A frozen linear layer `x weight' + bias` and its adapters, whose rows do not overlap."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    branches: tuple[Branch, ...]


def group(model: nn.Module, layers: Sequence[nn.Module]) -> dict[nn.Module, tuple[nn.Module, ...]]:
    """For each layer, the layers that get the same input, itself included."""
    found: dict[nn.Module, tuple[nn.Module, ...]] = {layer: (layer,) for layer in layers}
    for parent in model.modules():
        for names in OF_ONE_INPUT:
            together = tuple(layer for name in names if (layer := getattr(parent, name, None)) in found)
            found.update(dict.fromkeys(together, together))
    return found


def compute(x: torch.Tensor, layers: Sequence[AdaptedLinear]) -> tuple[torch.Tensor, ...]:
    """The output of each layer for `x` [..., columns], in the precision of its weights."""
    places = [(at, branch) for at, layer in enumerate(layers) for branch in layer.branches]
    by_rows: dict[tuple[int | None, int | None], list[int]] = {}
    for number, (_, branch) in enumerate(places):
        by_rows.setdefault((branch.rows.start, branch.rows.stop), []).append(number)
    plan = _Plan(
        tuple(at for at, _ in places),
        tuple(branch.scaling for _, branch in places),
        tuple((slice(*rows), tuple(numbers)) for rows, numbers in by_rows.items()),
    )
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    downs, ups = [branch.down for _, branch in places], [branch.up for _, branch in places]
    return _AdaptedLayers.apply(x, plan, *weights, *biases, *downs, *ups)  # type: ignore[no-any-return]


def output(
    layer: Any, x: torch.Tensor, adapted: AdaptedLinear, found: Callable[[Any], AdaptedLinear | None]
) -> torch.Tensor:
    """The output of a layer for `x`; layers with the same input, which are called next, are computed with it.

    Args:
        layer: one with `of_one_input`, see `group`.
        adapted: its matrices.
        found: returns the matrices of another one; None if it is currently not such a layer.
    """
    if len(layer.of_one_input) == 1 or not torch.is_grad_enabled() or x.is_inference():
        return compute(x, [adapted])[0]
    done = _OUTPUT_CACHE.take(layer, x, adapted)
    if done is not None:
        return done
    others = {each: found(each) for each in layer.of_one_input}
    if None in others.values():
        return compute(x, [adapted])[0]
    layers: dict[Any, Any] = others
    outputs = dict(zip(layers, compute(x, list(layers.values())), strict=True))
    own = outputs.pop(layer)
    _OUTPUT_CACHE.keep(x, {each: (_state(x, layers[each]), out) for each, out in outputs.items()})
    return own


class _OutputCache(threading.local):
    """Outputs that this thread has computed for layers that have not been called yet."""

    x: torch.Tensor | None = None
    outputs: dict[Any, tuple[tuple[Any, ...], torch.Tensor]] = {}

    def keep(self, x: torch.Tensor, outputs: dict[Any, Any]) -> None:
        self.x, self.outputs = x, outputs

    def take(self, layer: Any, x: torch.Tensor, adapted: AdaptedLinear) -> torch.Tensor | None:
        """The layer's output, only once; None if input or layer have changed since it was computed."""
        if self.x is not x or layer not in self.outputs:
            return None
        state, out = self.outputs.pop(layer)
        if not self.outputs:
            self.x = None
        return out if state == _state(x, adapted) else None


_OUTPUT_CACHE = _OutputCache()


def _state(x: torch.Tensor, adapted: AdaptedLinear) -> tuple[Any, ...]:
    """A key of input and layer that changes if either is replaced or written to."""
    matrices = [each for branch in adapted.branches for each in branch[:2]]
    tensors = [x, adapted.weight, *([] if adapted.bias is None else [adapted.bias]), *matrices]
    about = [(branch.scaling, branch.rows.start, branch.rows.stop) for branch in adapted.branches]
    return (*about, *((id(each), each._version) for each in tensors))


class _Plan(NamedTuple):
    """Of the branches of several layers: the layer and the scaling of each, and the numbers of those of the same rows."""

    layers: tuple[int, ...]
    scalings: tuple[float, ...]
    by_rows: tuple[tuple[slice, tuple[int, ...]], ...]


class _AdaptedLayers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, plan: _Plan, *matrices: Any) -> tuple[torch.Tensor, ...]:
        """Of each layer [..., its columns]; `matrices` are all weights, all biases, all downs and all ups."""
        layers, branches = (len(matrices) - 2 * len(plan.layers)) // 2, len(plan.layers)
        weights, biases = matrices[:layers], matrices[layers : 2 * layers]
        downs, ups = matrices[2 * layers : 2 * layers + branches], matrices[2 * layers + branches :]
        dtype = weights[0].dtype
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        narrow, outputs, wide = [up.to(dtype) for up in ups], [], []
        for weight, bias in zip(weights, biases, strict=True):
            out = flat.new_empty((*x.shape[:-1], len(weight)))  # not a view: the model may write into it
            wide.append(out.view(-1, len(weight)))
            if bias is None:
                torch.mm(flat, weight.t(), out=wide[-1])
            else:
                torch.addmm(bias, flat, weight.t(), out=wide[-1])
            outputs.append(out)
        joined, inners = [], []
        for rows, numbers in plan.by_rows:
            first = downs[numbers[0]]
            down = (first if len(numbers) == 1 else torch.cat([downs[number] for number in numbers])).to(dtype)
            inner = torch.mm(flat[rows], down.t())
            parts = inner.split([len(downs[number]) for number in numbers], 1)
            for number, part in zip(numbers, parts, strict=True):
                wide[plan.layers[number]][rows].addmm_(part, narrow[number].t(), alpha=plan.scalings[number])
            joined.append(down)
            inners.append(inner)
        ctx.save_for_backward(flat, *weights, *joined, *inners, *narrow)
        ctx.plan, ctx.shape = plan, x.shape
        ctx.dtypes = x.dtype, *(each.dtype for each in (*downs, *ups))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Gradients of x and of each down and up, each in its own precision."""
        plan: _Plan = ctx.plan
        flat, *rest = ctx.saved_tensors
        layers, groups = len(grads), len(plan.by_rows)
        weights, joined = rest[:layers], rest[layers : layers + groups]
        inners, ups = rest[layers + groups : layers + 2 * groups], rest[layers + 2 * groups :]
        wide = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        to_x = _like(flat, plan) if ctx.needs_input_grad[0] else None
        to_downs: list[Any] = [None] * len(ups)
        to_ups: list[Any] = [None] * len(ups)
        for (rows, numbers), down, inner in zip(plan.by_rows, joined, inners, strict=True):
            gradients = [wide[plan.layers[number]][rows] for number in numbers]
            parts = [
                torch.mm(slope, ups[n]).mul_(plan.scalings[n]) for slope, n in zip(gradients, numbers, strict=True)
            ]
            narrow = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            if to_x is not None:
                torch.mm(narrow, down, out=to_x[rows])
            ranks = [part.shape[1] for part in parts]
            found = torch.mm(narrow.t(), flat[rows]).split(ranks)
            for number, slope, part, to_down in zip(numbers, gradients, inner.split(ranks, 1), found, strict=True):
                to_downs[number] = to_down.to(ctx.dtypes[1 + number])
                to_up = torch.mm(slope.t(), part).mul_(plan.scalings[number])
                to_ups[number] = to_up.to(ctx.dtypes[1 + len(ups) + number])
        if to_x is not None:
            for slope, weight in zip(wide, weights, strict=True):
                to_x.addmm_(slope, weight)
            to_x = to_x.view(ctx.shape).to(ctx.dtypes[0])
        return to_x, None, *[None] * (2 * layers), *to_downs, *to_ups


def _like(flat: torch.Tensor, plan: _Plan) -> torch.Tensor:
    """Room for the gradient of an input: zero in rows that no branch writes."""
    covered = sum(len(range(*rows.indices(len(flat)))) for rows, _ in plan.by_rows)
    return torch.empty_like(flat) if covered == len(flat) else torch.zeros_like(flat)
