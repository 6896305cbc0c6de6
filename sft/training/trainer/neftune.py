"""`trainer.neftune_noise_alpha`: uniform noise on the embeddings in training (Jain et al. 2023), the same in every layout.

The noise scale is divided by the square root of the document's own length. transformers uses the width of the batch,
which includes padding, or all documents of a padding-free batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


class Noise:
    """A forward hook of the embeddings.

    Args:
        alpha: noise is uniform in ±alpha / sqrt(tokens of the document · embedding size).
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.lengths: torch.Tensor | None = None

    def of(self, batch: Mapping[str, Any]) -> None:
        """Set the batch of the next forward pass."""
        self.lengths = document_lengths(batch)

    def __call__(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training or self.lengths is None:
            return output
        lengths = self.lengths.to(output.device, torch.float32)
        most = self.alpha / (lengths * output.shape[-1]).sqrt()
        return output + torch.empty_like(output).uniform_(-1, 1) * most.unsqueeze(-1).to(output.dtype)


@contextmanager
def noisy(model: Any, noise: Noise | None) -> Iterator[None]:
    """Add noise to a model's embeddings within the block; None adds none."""
    if noise is None:
        yield
        return
    handle = model.get_input_embeddings().register_forward_hook(noise)
    try:
        yield
    finally:
        handle.remove()


def document_lengths(batch: Mapping[str, Any]) -> torch.Tensor:
    """For each position [rows, tokens] the length of its document; of its row, if a mask marks the padding."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if mask is not None:
        return mask.sum(-1, keepdim=True).expand_as(ids)
    number = (batch["position_ids"] == 0).flatten().cumsum(0) - 1
    return torch.bincount(number)[number].reshape(ids.shape)
