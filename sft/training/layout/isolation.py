"""Whether documents in a padding-free batch are isolated on the real model, determined before the first step.

Two comparisons are made on a few documents of the run's own rows:

- their losses concatenated and alone: they differ if positions are not reset, or if a mask is missing;
- the losses of the later documents after two different first ones: bit-identical in any precision if nothing leaks,
  which a comparison with documents alone cannot be in 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sft.data.batches.collate import FlatCollator, split_batch
from sft.data.batches.prefix import MIN_SHARED_TOKENS, SharedPrefixCollator
from sft.data.documents import IGNORE, Rows
from sft.kernels.cross_entropy import token_losses

DOCUMENTS = 2
TOKENS = 32  # of each document: a leak affects its first tokens most
PREFIX_TOKENS = 2 * MIN_SHARED_TOKENS  # tokens of the shared prefix that documents are given
EXACT, ROUNDED = 1e-3, 0.1  # tolerance of a document's mean loss to rounding, in nats, in fp32 and with 16 or 8 bits
EXACT_LEAK, ROUNDED_LEAK = 1e-4, 2e-2  # and of a token's loss to a different neighbour


@dataclass(frozen=True)
class Isolation:
    """The result of the comparison.

    Attributes:
        packed: mean loss of each document concatenated with the others, in nats.
        separate: mean loss of each by itself.
        leak: the largest change of a later document's token loss when the first document is replaced.
        rounded: whether the forward pass rounds to 16 or 8 bits.
    """

    packed: tuple[float, ...]
    separate: tuple[float, ...]
    leak: float
    rounded: bool

    @property
    def difference(self) -> float:
        """The largest difference between a document's mean losses."""
        return max(abs(a - b) for a, b in zip(self.packed, self.separate, strict=True))

    @property
    def holds(self) -> bool:
        """Whether the documents are isolated."""
        if not self.difference <= (ROUNDED if self.rounded else EXACT):  # False for NaN
            return False
        return self.leak <= (ROUNDED_LEAK if self.rounded else EXACT_LEAK)

    def __str__(self) -> str:
        packed, separate = (", ".join(f"{value:.4f}" for value in values) for values in (self.packed, self.separate))
        text = f"loss {packed} together, {separate} alone"
        if self.leak > EXACT_LEAK:
            text += f"; another first document changes the later ones by {self.leak:.4f}"
        return text


def sample_documents(rows: Rows, longest: int = 0) -> list[list[int]]:
    """Token ids of a few documents, truncated: of the first pack that has several, or of the first rows.

    Args:
        longest: minimum number of tokens of the last one (more than a sliding window); 0: any.
    """
    if rows.packs is None:
        members = [index for index in range(min(len(rows), 64)) if rows.documents.length[index] > 1]
    else:
        packs = ([m for m in rows.members(i) if rows.documents.length[m] > 1] for i in range(len(rows)))
        members = next((pack for pack in packs if len(pack) > 1), [])
    found = [rows.document(member)["input_ids"][:TOKENS] for member in members[:DOCUMENTS]]
    if len(found) > 1 and longest:
        last = found[-1]
        found[-1] = (last * (longest // len(last) + 1))[:longest]
    return found if len(found) > 1 else []


def losses_alone(model: Any, documents: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The losses of each document's tokens computed alone, from full logits, in the caller's mode and precision."""
    return [_losses(model, [document], None)[0] for document in documents]


def compare(
    model: Any, documents: Sequence[Sequence[int]], separate: Sequence[torch.Tensor], head: Any = None
) -> Isolation:
    """Compare concatenated documents with `separate`, their losses `losses_alone`, and with those after a different
    first document.

    Args:
        head: the output layer, if training will apply it by chunks (see `loss`).
    """
    packed = _losses(model, documents, head)
    other = _losses(model, [_other_tokens(documents), *documents[1:]], head)
    leak = max(float((a - b).abs().max()) for a, b in zip(packed[1:], other[1:], strict=True))
    means = [tuple(float(each.mean()) for each in losses) for losses in (packed, separate)]
    return Isolation(means[0], means[1], leak, _rounds_to_16_bits(model))


def with_common_prefix(documents: Sequence[Sequence[int]]) -> list[list[int]]:
    """The documents, each preceded by the same tokens, enough of them to be shared."""
    start = [documents[0][index % len(documents[0])] for index in range(PREFIX_TOKENS)]
    return [[*start, *document] for document in documents]


def losses_after_prefix(model: Any, documents: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """As `losses_alone`, for the tokens after the shared prefix."""
    return [_losses(model, [document], None, PREFIX_TOKENS + 1)[0] for document in documents]


def compare_shared_prefix(
    model: Any, documents: Sequence[Sequence[int]], separate: Sequence[torch.Tensor], head: Any = None
) -> Isolation:
    """As `compare`, for documents with a shared prefix that is computed once.

    In fp32 each document is represented by its most different token: a mean would hide a prefix that was not seen.
    """
    first = [*documents[0][:PREFIX_TOKENS], *_other_tokens([each[PREFIX_TOKENS:] for each in documents])]
    packed, other = (
        _losses(model, each, head, PREFIX_TOKENS + 1, SharedPrefixCollator())
        for each in (documents, [first, *documents[1:]])
    )
    leak = max(float((a - b).abs().max()) for a, b in zip(packed[1:], other[1:], strict=True))
    rounded = _rounds_to_16_bits(model)
    worst = [None if rounded else int((a - b).abs().argmax()) for a, b in zip(packed, separate, strict=True)]
    shown = [
        tuple(float(each.mean() if at is None else each[at]) for each, at in zip(losses, worst, strict=True))
        for losses in (packed, separate)
    ]
    return Isolation(shown[0], shown[1], leak, rounded)


def _other_tokens(documents: Sequence[Sequence[int]]) -> list[int]:
    """As many tokens as the first document has, all different."""
    first, last = list(documents[0]), list(documents[-1])
    if first != first[::-1]:
        return first[::-1]
    return [last[index % len(last)] for index in range(len(first))]


def _losses(
    model: Any, documents: Sequence[Sequence[int]], head: Any, first: int = 1, collator: FlatCollator | None = None
) -> list[torch.Tensor]:
    """Cross entropy of each document's tokens from index `first` on; fp32 [tokens - first] each."""
    lengths = [len(document) for document in documents]
    rows = [
        {"input_ids": list(each), "labels": [IGNORE] * first + list(each[first:]), "source": "", "row": 0}
        for each in documents
    ]
    batch, _ = split_batch((collator or FlatCollator())(rows))
    device = model.get_input_embeddings().weight.device
    inputs = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    return list(token_losses(model, inputs, head).cpu().split([length - first for length in lengths]))


def _rounds_to_16_bits(model: Any) -> bool:
    """Whether a forward pass here computes in less than fp32 precision."""
    device = model.get_input_embeddings().weight.device.type
    if torch.is_autocast_enabled(device) or getattr(model, "is_loaded_in_8bit", False):
        return True
    return any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters())
