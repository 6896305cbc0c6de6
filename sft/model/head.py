"""A model's output layer: whether logits can be had at chosen positions alone, and the layer left out altogether."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sft.model.base import base_of


def chooses_positions(model: nn.Module) -> bool:
    """Whether the model computes logits at chosen positions (transformers' own models with `logits_to_keep`)."""
    inner = base_of(model)
    own = type(inner).__module__.startswith("transformers.")
    return own and "logits_to_keep" in inspect.signature(inner.forward).parameters


def output_layer(model: nn.Module) -> nn.Module | None:
    """The module that makes logits of hidden states, adapters on it included; None where more is done to them than that."""
    inner = base_of(model)
    capped = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
    return inner.get_output_embeddings() if chooses_positions(model) and not capped else None


@contextmanager
def left_out(head: nn.Module | None) -> Iterator[None]:
    """For the time of the block the output layer gives back the hidden states that it is given."""
    if head is None:
        yield
        return
    hooked = head.__dict__.get("forward")  # accelerate puts one on the module where weights are spread over devices
    head.forward = _as_given  # type: ignore[method-assign]
    try:
        yield
    finally:
        del head.forward
        if hooked is not None:
            head.forward = hooked  # type: ignore[method-assign]


def _as_given(hidden: torch.Tensor) -> torch.Tensor:
    return hidden  # one function for all calls: torch.compile compiles anew for every other one
