"""Cross entropy at trained positions only: logits elsewhere are neither computed nor kept.

Where the model allows it even these are never there all at once: its output layer is left out of the forward pass and
applied to the hidden states a chunk at a time, each chunk's gradient taken while its logits are there (Hsu et al. 2024,
"Liger Kernel", do so for one linear layer; here the layer is the model's own module, adapters on it included).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sft.data.documents import IGNORE
from sft.model.head import left_out

CHUNK = 4096  # positions whose fp32 copy of the logits is alive at once, where the model computes all of them
# elements of a chunk's logits where the output layer is applied by chunks. On the CPU 32 MiB in fp32, which the C library
# hands out again from chunk to chunk (larger blocks it maps anew, a page fault for each 4 KiB); 512 MiB on CUDA
CPU_ELEMENTS, CUDA_ELEMENTS = 2**23 - 2**12, 2**27
SLICES = 8  # of a chunk; the fp32 copies of one are 4 MiB on the CPU, which its caches hold


def summed_loss(
    model: nn.Module, batch: Mapping[str, Any], positions: bool, head: nn.Module | None = None, **extra: Any
) -> tuple[torch.Tensor, Any]:
    """Cross entropy summed over a batch's trained tokens, in nats.

    Args:
        model: a causal language model, wrapped or not.
        batch: input_ids, shift_labels [rows, tokens] and what else the model takes (attention_mask, position_ids);
            `shift_labels[b, t]` is what position t has to predict, -100 where nothing is.
        positions: whether the model chooses positions, see `chooses_positions`.
        head: its output layer, to be applied by chunks; None: the model makes the logits.

    Returns:
        The loss, fp32, and the model's outputs (with a `head` these hold hidden states in place of logits).
    """
    with left_out(head):
        outputs = outputs_of(model, batch, positions, **extra)
    return loss_of(outputs, batch, positions, head), outputs


def outputs_of(model: nn.Module, batch: Mapping[str, Any], positions: bool, **extra: Any) -> Any:
    """What the model makes of a batch, at its trained positions alone where it chooses `positions`."""
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "shift_labels")}
    if positions:
        inputs["logits_to_keep"] = batch["shift_labels"] != IGNORE
    return model(**inputs, use_cache=False, **extra)


def loss_of(outputs: Any, batch: Mapping[str, Any], positions: bool, head: nn.Module | None = None) -> torch.Tensor:
    """The loss of `summed_loss`, of what `outputs_of` gave (hidden states, where there is a `head`)."""
    targets = batch["shift_labels"]
    wanted = targets != IGNORE
    logits = outputs.logits if hasattr(outputs, "logits") else outputs["logits"]
    logits = logits.reshape(-1, logits.shape[-1]) if positions else logits[wanted]
    targets = targets[wanted].to(logits.device)
    if head is None:
        return cross_entropy_sum(logits, targets)
    return chunked_cross_entropy_sum(logits, head, targets)


def token_losses(model: nn.Module, batch: Mapping[str, Any], head: nn.Module | None = None) -> torch.Tensor:
    """Cross entropy of each trained token of a batch, fp32 [tokens], without gradients; all logits where no `head`."""
    targets = batch["shift_labels"]
    wanted = targets != IGNORE
    with left_out(head):
        outputs = outputs_of(model, batch, positions=head is not None)
    logits = head(outputs.logits.reshape(-1, outputs.logits.shape[-1])) if head else outputs.logits[wanted]
    return nn.functional.cross_entropy(logits.float(), targets[wanted].to(logits.device), reduction="none")


def cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits [positions, vocabulary], summed, computed in fp32 a chunk at a time."""
    if len(logits) == 0:
        return logits.float().sum()  # zero, with a gradient that every rank can reduce
    parts = [
        nn.functional.cross_entropy(logits[at : at + CHUNK].float(), targets[at : at + CHUNK], reduction="sum")
        for at in range(0, len(logits), CHUNK)
    ]
    return torch.stack(parts).sum()


def chunked_cross_entropy_sum(hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy of `head(hidden)`, summed, the logits of a few positions at a time.

    Args:
        hidden: [positions, hidden size].
        head: the output layer; gradients of its trained parameters come out too.
        targets: [positions].
    """
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    if not torch.is_grad_enabled():
        trained = []
    if len(hidden) == 0:  # zero, with a gradient of every parameter that other ranks will reduce
        return hidden.float().sum() + sum(0.0 * parameter.float().sum() for parameter in trained)
    return _Chunked.apply(hidden, targets, head, *trained)  # type: ignore[no-any-return]


class _Chunked(torch.autograd.Function):
    """Gradients are taken chunk by chunk in the forward pass, and only scaled in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: nn.Module, *trained: Any) -> torch.Tensor:
        """The summed loss; gradients of the hidden states and of the trained parameters are kept for `backward`."""
        needs = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needs else None
        sums = [torch.zeros_like(parameter) for parameter in trained]
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        rows = max(16, chunk_elements(hidden.device.type) // _vocabulary(head, hidden))
        for at in _starts(hidden, rows):
            piece = hidden[at : at + rows].detach().requires_grad_(needs)
            with torch.set_grad_enabled(needs or bool(trained)):
                logits = head(piece)
            loss, slope = _loss_and_slope(logits.detach(), targets[at : at + rows], needs or bool(trained))
            total += loss
            if slope is not None:
                wanted = ([piece] if needs else []) + list(trained)
                found = list(torch.autograd.grad(logits, wanted, slope))
                if gradient is not None:
                    gradient[at : at + rows] = found.pop(0)
                for into, part in zip(sums, found, strict=True):
                    into += part
        ctx.save_for_backward(*([gradient] if gradient is not None else []), *sums)
        ctx.needs = needs
        return total.float()

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:  # type: ignore[override]
        """The kept gradients times that of the loss, a scalar."""
        scaled = [
            saved * outputs[0] for saved in ctx.saved_tensors
        ]  # a scalar: multiplied in fp32, whatever `saved` is
        gradient = scaled.pop(0) if ctx.needs else None
        return gradient, None, None, *scaled


def chunk_elements(device: str) -> int:
    """Elements of a chunk's logits on a device."""
    return CUDA_ELEMENTS if device == "cuda" else CPU_ELEMENTS


def _starts(hidden: torch.Tensor, rows: int) -> range:
    """Where chunks begin; on the meta device, where only their sizes count, the first three tell what all take."""
    return range(0, min(len(hidden), 3 * rows) if hidden.is_meta else len(hidden), rows)


def _loss_and_slope(
    logits: torch.Tensor, targets: torch.Tensor, slope: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Summed cross entropy in fp64, and its gradient in the logits' dtype: probabilities, less one at the targets.

    A few rows at a time are widened to fp32, in memory that is used again for the next ones.
    """
    slopes = torch.empty_like(logits) if slope else None
    rows = max(1, chunk_elements(logits.device.type) // SLICES // logits.shape[-1])
    wide = logits.new_empty((2, min(rows, len(logits)), logits.shape[-1]), dtype=torch.float32)
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for at in range(0, len(logits), rows):
        some, right = logits[at : at + rows], targets[at : at + rows, None]
        scores, probabilities = wide[:, : len(some)]
        torch.softmax(scores.copy_(some), -1, out=probabilities)
        below, largest = scores.amax(-1, keepdim=True) - scores.gather(1, right), probabilities.amax(-1, keepdim=True)
        total += (below - largest.log()).sum(dtype=torch.float64)
        if slopes is not None:  # less one before it is rounded to 16 bits
            slopes[at : at + rows] = probabilities.scatter_(1, right, probabilities.gather(1, right) - 1)
    return total, slopes


def _vocabulary(head: nn.Module, hidden: torch.Tensor) -> int:
    size = getattr(head, "out_features", None)
    if size is None:
        with torch.no_grad():
            size = head(hidden[:1]).shape[-1]
    return int(size)
