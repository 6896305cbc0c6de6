"""Whether documents laid end to end are kept apart on the real model, found out before the first step.

Two things are held to each other on a few documents of the run's own rows:

- their losses end to end and alone: positions that do not start again, or a mask that is not there, make them differ;
- the losses of the later documents beside two different first ones: the same numbers bit for bit where nothing leaks,
  in any precision, which a comparison with documents alone cannot be in 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sft.data.batches.collate import FlatCollator, split_batch
from sft.data.batches.prefix import LEAST, SharingCollator
from sft.data.documents import IGNORE, Rows
from sft.kernels.cross_entropy import token_losses

DOCUMENTS = 2
TOKENS = 32  # of each document: a leak shows in its first tokens most
BEGINNING = 2 * LEAST  # tokens that documents are made to begin with alike
EXACT, ROUNDED = 1e-3, 0.1  # nats that rounding may cost a document's mean loss, in fp32 and with 16 or 8 bits
EXACT_LEAK, ROUNDED_LEAK = 1e-4, 2e-2  # and that another neighbour may cost a token


@dataclass(frozen=True)
class Isolation:
    """What the comparison found.

    Attributes:
        together: mean loss of each document laid end to end with the others, in nats.
        alone: the same of each by itself.
        leak: the largest change of a later document's token when the first document is another.
        rounded: whether the forward pass rounds to 16 or 8 bits.
    """

    together: tuple[float, ...]
    alone: tuple[float, ...]
    leak: float
    rounded: bool

    @property
    def difference(self) -> float:
        """The largest difference of a document's mean loss."""
        return max(abs(a - b) for a, b in zip(self.together, self.alone, strict=True))

    @property
    def holds(self) -> bool:
        """Whether the documents are apart."""
        if not self.difference <= (ROUNDED if self.rounded else EXACT):  # NaN does not hold
            return False
        return self.leak <= (ROUNDED_LEAK if self.rounded else EXACT_LEAK)

    def __str__(self) -> str:
        together, alone = (", ".join(f"{value:.4f}" for value in values) for values in (self.together, self.alone))
        text = f"loss {together} together, {alone} alone"
        if self.leak > EXACT_LEAK:
            text += f"; another first document changes the later ones by {self.leak:.4f}"
        return text


def few_documents(rows: Rows, longest: int = 0) -> list[list[int]]:
    """Token ids of a few documents, cut short: of the first pack that has several, or of the first rows.

    Args:
        longest: tokens that the last of them must have at least (more than a sliding window); 0: no matter.
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


def alone(model: Any, documents: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The losses of each document's tokens by itself, of all logits, in the caller's mode and precision."""
    return [_losses(model, [document], None)[0] for document in documents]


def compare(
    model: Any, documents: Sequence[Sequence[int]], apart: Sequence[torch.Tensor], head: Any = None
) -> Isolation:
    """Compare documents end to end with `apart`, their losses `alone`, and with those behind another first one.

    Args:
        head: the output layer, where training will apply it by chunks (see `loss`).
    """
    together = _losses(model, documents, head)
    other = _losses(model, [_another(documents), *documents[1:]], head)
    leak = max(float((a - b).abs().max()) for a, b in zip(together[1:], other[1:], strict=True))
    means = [tuple(float(each.mean()) for each in losses) for losses in (together, apart)]
    return Isolation(means[0], means[1], leak, _rounds(model))


def beginning_alike(documents: Sequence[Sequence[int]]) -> list[list[int]]:
    """The documents, each behind the same tokens, so many that they are shared."""
    start = [documents[0][index % len(documents[0])] for index in range(BEGINNING)]
    return [[*start, *document] for document in documents]


def alone_after(model: Any, documents: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """As `alone`, of the tokens of documents that begin alike after their common beginning."""
    return [_losses(model, [document], None, BEGINNING + 1)[0] for document in documents]


def compare_sharing(
    model: Any, documents: Sequence[Sequence[int]], apart: Sequence[torch.Tensor], head: Any = None
) -> Isolation:
    """As `compare`, of documents that begin alike, their common beginning computed once.

    In fp32 the token of each document that differs most stands for it: a mean hides a beginning that was not seen.
    """
    first = [*documents[0][:BEGINNING], *_another([each[BEGINNING:] for each in documents])]
    together, other = (
        _losses(model, each, head, BEGINNING + 1, SharingCollator()) for each in (documents, [first, *documents[1:]])
    )
    leak = max(float((a - b).abs().max()) for a, b in zip(together[1:], other[1:], strict=True))
    rounded = _rounds(model)
    worst = [None if rounded else int((a - b).abs().argmax()) for a, b in zip(together, apart, strict=True)]
    shown = [
        tuple(float(each.mean() if at is None else each[at]) for each, at in zip(losses, worst, strict=True))
        for losses in (together, apart)
    ]
    return Isolation(shown[0], shown[1], leak, rounded)


def _another(documents: Sequence[Sequence[int]]) -> list[int]:
    """Other tokens than the first document's, as many."""
    first, last = list(documents[0]), list(documents[-1])
    if first != first[::-1]:
        return first[::-1]
    return [last[index % len(last)] for index in range(len(first))]


def _losses(
    model: Any, documents: Sequence[Sequence[int]], head: Any, first: int = 1, collator: FlatCollator | None = None
) -> list[torch.Tensor]:
    """Cross entropy of each document's tokens from the one with number `first` on; fp32 [tokens - first] each."""
    lengths = [len(document) for document in documents]
    rows = [
        {"input_ids": list(each), "labels": [IGNORE] * first + list(each[first:]), "source": "", "row": 0}
        for each in documents
    ]
    batch, _ = split_batch((collator or FlatCollator())(rows))
    device = model.get_input_embeddings().weight.device
    inputs = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    return list(token_losses(model, inputs, head).cpu().split([length - first for length in lengths]))


def _rounds(model: Any) -> bool:
    """Whether a forward pass here computes in less than fp32."""
    device = model.get_input_embeddings().weight.device.type
    if torch.is_autocast_enabled(device) or getattr(model, "is_loaded_in_8bit", False):
        return True
    return any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters())
