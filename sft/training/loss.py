"""Cross entropy at trained positions only: logits elsewhere are neither computed nor kept."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

IGNORE = -100
CHUNK = 4096  # positions whose fp32 copy of the logits is alive at once


def chooses_positions(model: nn.Module) -> bool:
    """Whether the model computes logits at chosen positions (transformers' own models with `logits_to_keep`)."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    own = type(inner).__module__.startswith("transformers.")
    return own and "logits_to_keep" in inspect.signature(inner.forward).parameters


def summed_loss(model: nn.Module, batch: Mapping[str, Any], positions: bool, **extra: Any) -> tuple[torch.Tensor, Any]:
    """Cross entropy summed over a batch's trained tokens, in nats.

    Args:
        model: a causal language model, wrapped or not.
        batch: input_ids, shift_labels [rows, tokens] and what else the model takes (attention_mask, position_ids);
            `shift_labels[b, t]` is what position t has to predict, -100 where nothing is.
        positions: whether the model chooses positions, see `chooses_positions`.

    Returns:
        The loss, fp32, and the model's outputs.
    """
    targets = batch["shift_labels"]
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "shift_labels")}
    wanted = targets != IGNORE
    if positions:
        inputs["logits_to_keep"] = wanted
    outputs = model(**inputs, use_cache=False, **extra)
    logits = outputs.logits if hasattr(outputs, "logits") else outputs["logits"]
    logits = logits.reshape(-1, logits.shape[-1]) if positions else logits[wanted]
    return cross_entropy_sum(logits, targets[wanted].to(logits.device)), outputs


def cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits [positions, vocabulary], summed, computed in fp32 a chunk at a time."""
    if len(logits) == 0:
        return logits.float().sum()  # zero, with a gradient that every rank can reduce
    parts = [
        nn.functional.cross_entropy(logits[at : at + CHUNK].float(), targets[at : at + CHUNK], reduction="sum")
        for at in range(0, len(logits), CHUNK)
    ]
    return torch.stack(parts).sum()
