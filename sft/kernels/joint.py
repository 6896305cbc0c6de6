"""Several jobs in one pass of a base model: it is computed once for all their tokens, each adapter for its job's
tokens.

A pass is one padding-free row of the documents of all jobs, each job's in one contiguous segment (`Stretch`). A
`JointLinear` replaces a linear layer that some job adapts and adds each job's own branch to its segment; attention
stays within the documents of each segment. Training N adapters this way equals training each alone: the parameters of
one do not affect the loss of another (Ye et al. 2023, "mLoRA"; Zhu et al. 2025, "LoRAFusion").
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from sft.kernels import adapted
from sft.kernels.adapted import AdaptedLinear
from sft.kernels.attention import varlen_attention, varlen_mask
from sft.kernels.lowrank import autocast_dtype, branch_of, low_rank, only_adapter

JOINT = "sft_joint"  # the attention implementation of a model with several jobs

RngState = AbstractContextManager[Any]


@dataclass(frozen=True)
class Stretch:
    """The tokens of one job in a pass.

    Attributes:
        job: its number.
        start, stop: its tokens.
        borders: boundaries of its documents, `cu_seq_lens_q`, `cu_seq_lens_k` and so on, relative to `start`.
        draws: activates the job's own random state within a block; None if no random numbers are used.
        noise: added to its embeddings; None for none.
    """

    job: int
    start: int
    stop: int
    borders: Mapping[str, Any]
    draws: Any = None
    noise: Any = None

    @property
    def drawing(self) -> RngState:
        """Use the job's own random state."""
        return self.draws() if self.draws is not None else nullcontext()


class _Pass(threading.local):
    """The segments of the pass that this thread computes."""

    stretches: tuple[Stretch, ...] = ()


_PASS = _Pass()


@contextmanager
def computing(stretches: tuple[Stretch, ...]) -> Iterator[None]:
    """Let this thread compute these segments within the block."""
    before, _PASS.stretches = _PASS.stretches, stretches
    try:
        yield
    finally:
        _PASS.stretches = before


class JointLinear(nn.Module):
    """A linear layer with the adapters of several jobs.

    Args:
        base_layer: the frozen layer.

    Attributes:
        layers: each job's own peft layer at this position; jobs that do not adapt it are missing.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.of_one_input: tuple[nn.Module, ...] = ()
        self.layers: dict[int, Any] = {}  # not submodules: their parameters belong to the jobs' models

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output [..., tokens, columns] for the tokens of all segments.

        Raises:
            ValueError: the input does not have one row per token of the pass (for example because of expert routing).
        """
        stretches = _PASS.stretches
        if x.shape[-2] != stretches[-1].stop or x.numel() != x.shape[-2] * x.shape[-1]:
            raise ValueError(f"a layer is given {tuple(x.shape)} of {stretches[-1].stop} tokens")
        cast = autocast_dtype(x.device.type)
        found = partial(_adapted, dtype=cast or x.dtype, autocast=cast is not None)
        whole = found(self)
        if whole is not None:
            return adapted.output(self, x, whole, found)
        return self._by_stretches(x, stretches)

    def _by_stretches(self, x: torch.Tensor, stretches: tuple[Stretch, ...]) -> torch.Tensor:
        """Compute each segment's branch separately, because of dropout or an unsupported base layer."""
        lengths = [each.stop - each.start for each in stretches]
        parts = []
        for stretch, base, own in zip(
            stretches, self.base_layer(x).split(lengths, -2), x.split(lengths, -2), strict=True
        ):
            layer = self.layers.get(stretch.job)
            if layer is None:
                parts.append(base)
                continue
            name = only_adapter(layer)
            if name is None:
                raise ValueError(f"the adapter of job {stretch.job} is not a plain one any more")
            with stretch.drawing:
                parts.append(low_rank(layer, name, base, own, own_output=False))
        return torch.cat(parts, -2)


def _adapted(joint: Any, dtype: torch.dtype, autocast: bool) -> AdaptedLinear | None:
    """The layer with the branches of all segments, if all of them can be fused."""
    weight = bias = None
    branches = []
    for stretch in _PASS.stretches:
        layer = joint.layers.get(stretch.job)
        if layer is None:
            continue
        one = branch_of(layer, dtype, autocast)
        if one is None:
            return None
        weight, bias = one.weight, one.bias
        branches.append(one.branches[0]._replace(rows=slice(stretch.start, stretch.stop)))
    if weight is None:
        base = joint.base_layer
        if type(base) is not nn.Linear or base.weight.dtype is not dtype:
            return None
        weight, bias = base.weight, base.bias
    return AdaptedLinear(weight, bias, tuple(branches))


def joint_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As `varlen_attention`, for each segment with its own boundaries; on CUDA in one call, if there is no shared
    prefix."""
    stretches = _PASS.stretches
    lengths = [each.stop - each.start for each in stretches]
    if query.is_cuda:
        return varlen_attention(module, query, key, value, attention_mask, **{**kwargs, **_joined(stretches)})
    parts = zip(stretches, query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    found = [varlen_attention(module, q, k, v, None, **{**kwargs, **each.borders})[0] for each, q, k, v in parts]
    return (found[0] if len(found) == 1 else torch.cat(found, 1)), None


def _joined(stretches: tuple[Stretch, ...]) -> dict[str, Any]:
    """The boundaries of all segments as those of one batch."""
    borders = [each.borders["cu_seq_lens_q"][1:] + each.start for each in stretches]
    first = stretches[0].borders["cu_seq_lens_q"][:1]
    longest = max(int(each.borders["max_length_q"]) for each in stretches)
    joined = torch.cat([first, *borders])
    return {
        "cu_seq_lens_q": joined,
        "cu_seq_lens_k": joined,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def noisy_embeddings(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """A forward hook of the embeddings that adds each job's noise to its segment."""
    stretches = _PASS.stretches
    if all(each.noise is None for each in stretches):
        return output
    parts = []
    for stretch, part in zip(stretches, output.split([each.stop - each.start for each in stretches], -2), strict=True):
        with stretch.drawing:
            parts.append(part if stretch.noise is None else stretch.noise(module, inputs, part))
    return torch.cat(parts, -2)


def register() -> None:
    """Register the attention with transformers; idempotent."""
    AttentionInterface.register(JOINT, joint_attention)
    AttentionMaskInterface.register(JOINT, varlen_mask)
