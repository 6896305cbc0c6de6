"""Cross entropy at trained positions only: logits elsewhere are neither computed nor kept.

If the model allows it, even these never exist all at once: its output layer is skipped in the forward pass and applied
to the hidden states one chunk at a time, computing each chunk's gradient while its logits exist (as in Hsu et al. 2024,
"Liger Kernel", for one linear layer; here the layer is the model's own module, including adapters on it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sft.data.documents import IGNORE
from sft.model.head import output_layer_skipped

CHUNK = 4096  # positions whose fp32 logits are alive at once, if the model computes all logits
# elements of a chunk's logits if the output layer is applied by chunks. On the CPU 32 MiB in fp32, which the C library
# reuses from chunk to chunk (it maps larger blocks anew, with a page fault for each 4 KiB); 512 MiB on CUDA
CPU_ELEMENTS, CUDA_ELEMENTS = 2**23 - 2**12, 2**27
SLICES = 8  # of a chunk; its fp32 copies are 4 MiB on the CPU, which fits its caches


def summed_loss(
    model: nn.Module, batch: Mapping[str, Any], positions: bool, head: nn.Module | None = None, **extra: Any
) -> tuple[torch.Tensor, Any]:
    """Cross entropy summed over a batch's trained tokens, in nats.

    Args:
        model: a causal language model, wrapped or not.
        batch: input_ids, shift_labels [rows, tokens] and other model inputs (attention_mask, position_ids);
            `shift_labels[b, t]` is what position t has to predict, -100 for nothing.
        positions: whether the model can compute logits at selected positions, see `supports_logits_to_keep`.
        head: its output layer, to be applied by chunks; None: the model computes the logits.

    Returns:
        The loss, fp32, and the model's outputs (with a `head` these have hidden states instead of logits).
    """
    with output_layer_skipped(head):
        outputs = outputs_of(model, batch, positions, **extra)
    return loss_of(outputs, batch, positions, head), outputs


def outputs_of(model: nn.Module, batch: Mapping[str, Any], positions: bool, **extra: Any) -> Any:
    """The model's outputs for a batch, only at its trained positions if it can select `positions`."""
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "shift_labels")}
    if positions:
        inputs["logits_to_keep"] = batch["shift_labels"] != IGNORE
    return model(**inputs, use_cache=False, **extra)


def loss_of(outputs: Any, batch: Mapping[str, Any], positions: bool, head: nn.Module | None = None) -> torch.Tensor:
    """The loss of `summed_loss`, from the result of `outputs_of` (hidden states, if there is a `head`)."""
    targets = batch["shift_labels"]
    wanted = targets != IGNORE
    logits = outputs.logits if hasattr(outputs, "logits") else outputs["logits"]
    logits = logits.reshape(-1, logits.shape[-1]) if positions else logits[wanted]
    targets = targets[wanted].to(logits.device)
    if head is None:
        return cross_entropy_sum(logits, targets)
    return chunked_cross_entropy_sum(logits, head, targets)


def token_losses(model: nn.Module, batch: Mapping[str, Any], head: nn.Module | None = None) -> torch.Tensor:
    """Cross entropy of each trained token of a batch, fp32 [tokens], without gradients; from full logits without a
    `head`."""
    targets = batch["shift_labels"]
    wanted = targets != IGNORE
    with output_layer_skipped(head):
        outputs = outputs_of(model, batch, positions=head is not None)
    logits = head(outputs.logits.reshape(-1, outputs.logits.shape[-1])) if head else outputs.logits[wanted]
    return nn.functional.cross_entropy(logits.float(), targets[wanted].to(logits.device), reduction="none")


def cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross entropy of logits [positions, vocabulary], computed in fp32 one chunk at a time."""
    if len(logits) == 0:
        return logits.float().sum()  # a zero with a gradient, which every rank can reduce
    parts = [
        nn.functional.cross_entropy(logits[at : at + CHUNK].float(), targets[at : at + CHUNK], reduction="sum")
        for at in range(0, len(logits), CHUNK)
    ]
    return torch.stack(parts).sum()


def chunked_cross_entropy_sum(hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross entropy of `head(hidden)`, with the logits of a few positions at a time.

    Args:
        hidden: [positions, hidden size].
        head: the output layer; its trained parameters get gradients too.
        targets: [positions].
    """
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    if not torch.is_grad_enabled():
        trained = []
    if len(hidden) == 0:  # a zero with a gradient for every parameter that other ranks will reduce
        return hidden.float().sum() + sum(0.0 * parameter.float().sum() for parameter in trained)
    return _Chunked.apply(hidden, targets, head, *trained)  # type: ignore[no-any-return]


class _Chunked(torch.autograd.Function):
    """Computes gradients chunk by chunk in the forward pass, and only scales them in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: nn.Module, *trained: Any) -> torch.Tensor:
        """The summed loss; gradients of the hidden states and of the trained parameters are saved for `backward`."""
        needs = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needs else None
        sums = [torch.zeros_like(parameter) for parameter in trained]
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        rows = max(16, chunk_elements(hidden.device.type) // _vocabulary(head, hidden))
        for at in _starts(hidden, rows):
            piece = hidden[at : at + rows].detach().requires_grad_(needs)
            with torch.set_grad_enabled(needs or bool(trained)):
                logits = head(piece)
            loss, logit_gradient = _loss_and_gradient(logits.detach(), targets[at : at + rows], needs or bool(trained))
            total += loss
            if logit_gradient is not None:
                wanted = ([piece] if needs else []) + list(trained)
                found = list(torch.autograd.grad(logits, wanted, logit_gradient))
                if gradient is not None:
                    gradient[at : at + rows] = found.pop(0)
                for into, part in zip(sums, found, strict=True):
                    into += part
        ctx.save_for_backward(*([gradient] if gradient is not None else []), *sums)
        ctx.needs = needs
        return total.float()

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:  # type: ignore[override]
        """The saved gradients times that of the loss, a scalar."""
        scaled = [
            saved * outputs[0] for saved in ctx.saved_tensors
        ]  # a scalar: multiplied in fp32, whatever `saved` is
        gradient = scaled.pop(0) if ctx.needs else None
        return gradient, None, None, *scaled


def chunk_elements(device: str) -> int:
    """Number of elements of a chunk's logits on a device."""
    return CUDA_ELEMENTS if device == "cuda" else CPU_ELEMENTS


def _starts(hidden: torch.Tensor, rows: int) -> range:
    """Starts of the chunks; on the meta device, where only sizes matter, the first three represent all."""
    return range(0, min(len(hidden), 3 * rows) if hidden.is_meta else len(hidden), rows)


def _loss_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, needs_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Summed cross entropy in fp64, and its gradient in the logits' dtype: probabilities, minus one at the targets.

    A few rows at a time are upcast to fp32, in memory that is reused for the next ones.
    """
    gradients = torch.empty_like(logits) if needs_gradient else None
    rows = max(1, chunk_elements(logits.device.type) // SLICES // logits.shape[-1])
    wide = logits.new_empty((2, min(rows, len(logits)), logits.shape[-1]), dtype=torch.float32)
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for at in range(0, len(logits), rows):
        some, right = logits[at : at + rows], targets[at : at + rows, None]
        scores, probabilities = wide[:, : len(some)]
        torch.softmax(scores.copy_(some), -1, out=probabilities)
        below, largest = scores.amax(-1, keepdim=True) - scores.gather(1, right), probabilities.amax(-1, keepdim=True)
        total += (below - largest.log()).sum(dtype=torch.float64)
        if gradients is not None:  # minus one before rounding to 16 bits
            gradients[at : at + rows] = probabilities.scatter_(1, right, probabilities.gather(1, right) - 1)
    return total, gradients


def _vocabulary(head: nn.Module, hidden: torch.Tensor) -> int:
    size = getattr(head, "out_features", None)
    if size is None:
        with torch.no_grad():
            size = head(hidden[:1]).shape[-1]
    return int(size)
