"""Several jobs in one pass of a base model: it is computed once for all their tokens, each job's adapter for its own.

A pass is one padding-free row of the documents of all jobs, each job's in one stretch (`Stretch`). A `JointLinear`
stands where some job adapts a linear layer and adds to every stretch what its job's own layer adds; attention keeps to
the documents of each stretch. Training N adapters so is that of each alone: the parameters of one reach the loss of no
other (Ye et al. 2023, "mLoRA"; Zhu et al. 2025, "LoRAFusion").
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

JOINT = "sft_joint"  # the attention implementation of a model that computes several jobs

RngState = AbstractContextManager[Any]


@dataclass(frozen=True)
class Stretch:
    """The tokens of one job in a pass.

    Attributes:
        job: its number.
        start, stop: its tokens.
        borders: of its documents, `cu_seq_lens_q`, `cu_seq_lens_k` and so on, counted from `start`.
        draws: gives the job's own random state for the time of a block; None where nothing is drawn.
        noise: adds to its embeddings; None for nothing.
    """

    job: int
    start: int
    stop: int
    borders: Mapping[str, Any]
    draws: Any = None
    noise: Any = None

    @property
    def drawing(self) -> RngState:
        """The job's own random state."""
        return self.draws() if self.draws is not None else nullcontext()


class _Pass(threading.local):
    """The stretches of the pass that this thread computes."""

    stretches: tuple[Stretch, ...] = ()


_PASS = _Pass()


@contextmanager
def computing(stretches: tuple[Stretch, ...]) -> Iterator[None]:
    """This thread computes these stretches for the time of the block."""
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
        layers: each job's own peft layer in the same place; jobs that do not adapt it are not there.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.of_one_input: tuple[nn.Module, ...] = ()
        self.layers: dict[int, Any] = {}  # not submodules: their parameters belong to the jobs' models

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., tokens of all stretches, columns] to as many rows.

        Raises:
            ValueError: the input has other rows than the pass has tokens (routed to experts, say).
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
        """Each stretch's branch by itself: dropout draws for it, or the base's layer is not a plain one."""
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
    """The layer with the branches of all stretches, where each is of the kind that is computed whole."""
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
    """As `varlen_attention`, of each stretch with its own borders; on CUDA in one call, where no documents share anything."""
    stretches = _PASS.stretches
    lengths = [each.stop - each.start for each in stretches]
    if query.is_cuda:
        return varlen_attention(module, query, key, value, attention_mask, **{**kwargs, **_joined(stretches)})
    parts = zip(stretches, query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    found = [varlen_attention(module, q, k, v, None, **{**kwargs, **each.borders})[0] for each, q, k, v in parts]
    return (found[0] if len(found) == 1 else torch.cat(found, 1)), None


def _joined(stretches: tuple[Stretch, ...]) -> dict[str, Any]:
    """The borders of all stretches as those of one batch."""
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
    """A forward hook of the embeddings: each stretch with the noise of its job."""
    stretches = _PASS.stretches
    if all(each.noise is None for each in stretches):
        return output
    parts = []
    for stretch, part in zip(stretches, output.split([each.stop - each.start for each in stretches], -2), strict=True):
        with stretch.drawing:
            parts.append(part if stretch.noise is None else stretch.noise(module, inputs, part))
    return torch.cat(parts, -2)


def register() -> None:
    """Make the attention known to transformers; calling it again changes nothing."""
    AttentionInterface.register(JOINT, joint_attention)
    AttentionMaskInterface.register(JOINT, varlen_mask)
