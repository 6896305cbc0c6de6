"""A model's output layer: whether logits can be computed at chosen positions only, and skipping the layer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sft.model.base import base_of


def supports_logits_to_keep(model: nn.Module) -> bool:
    """Whether the model computes logits at chosen positions (transformers' own models with `logits_to_keep`)."""
    inner = base_of(model)
    own = type(inner).__module__.startswith("transformers.")
    return own and "logits_to_keep" in inspect.signature(inner.forward).parameters


def output_layer(model: nn.Module) -> nn.Module | None:
    """The module that computes logits from hidden states, with its adapters; None where logits are processed
    further."""
    inner = base_of(model)
    capped = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
    return inner.get_output_embeddings() if supports_logits_to_keep(model) and not capped else None


@contextmanager
def output_layer_skipped(head: nn.Module | None) -> Iterator[None]:
    """Within the block the output layer returns the hidden states unchanged."""
    if head is None:
        yield
        return
    hooked = head.__dict__.get("forward")  # accelerate sets one on the module where weights are spread over devices
    head.forward = _identity  # type: ignore[method-assign]
    try:
        yield
    finally:
        del head.forward
        if hooked is not None:
            head.forward = hooked  # type: ignore[method-assign]


def _identity(hidden: torch.Tensor) -> torch.Tensor:
    return hidden  # a single function, because torch.compile recompiles for each new one
