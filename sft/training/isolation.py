"""Whether packed documents are kept apart on the real model, found out before the first step.

Two things are held to each other on a few documents of the run's own packs:

- their losses packed and alone: positions that do not start again, or a mask that is not there, make them differ;
- the losses of the later documents beside two different first ones: the same numbers bit for bit where nothing leaks,
  in any precision, which a comparison with documents alone cannot be in 16 bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from sft.config.errors import UserError
from sft.data.collate import FlatCollator, split_batch
from sft.data.documents import Rows
from sft.evaluation.undisturbed import undisturbed
from sft.training.loss import IGNORE

log = logging.getLogger(__name__)

DOCUMENTS = 3
TOKENS = 64  # of each document: a leak shows in its first tokens most
EXACT, ROUNDED = 1e-3, 0.1  # nats that rounding may cost a document's mean loss, in fp32 and with 16 or 8 bits
EXACT_LEAK, ROUNDED_LEAK = 1e-4, 2e-2  # and that another neighbour may cost a token


@dataclass(frozen=True)
class Isolation:
    """What the comparison found.

    Attributes:
        packed: mean loss of each document in the pack, in nats.
        alone: the same of each by itself.
        leak: the largest change of a later document's token when the first document is another.
        rounded: whether the forward pass rounds to 16 or 8 bits.
    """

    packed: tuple[float, ...]
    alone: tuple[float, ...]
    leak: float
    rounded: bool

    @property
    def difference(self) -> float:
        """The largest difference of a document's mean loss."""
        return max(abs(a - b) for a, b in zip(self.packed, self.alone, strict=True))

    @property
    def holds(self) -> bool:
        """Whether the documents are apart."""
        if not self.difference <= (ROUNDED if self.rounded else EXACT):  # NaN does not hold
            return False
        return self.leak <= (ROUNDED_LEAK if self.rounded else EXACT_LEAK)


def check_isolation(
    model: Any, parts: Iterable[Rows], computing: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Isolation | None:
    """Compare packed and separate documents of a run's rows on its model, which is left as it was.

    Args:
        model: with its adapter, on its device.
        parts: the rows of training and of evaluation; unpacked ones have nothing to compare.
        computing: the context that training computes its forward passes in (autocast).

    Returns:
        What was found; None where no row holds several documents.

    Raises:
        UserError: the documents of a pack are not apart.
    """
    documents = next(filter(None, map(_documents, parts)), None)
    if documents is None:
        return None
    with undisturbed(model), computing():
        rounded = _rounds(model)
        found = compare(model, documents, rounded)
    if not found.holds:
        raise UserError(_reason(model, found), where="dataset.packing", remedy=_remedy(model))
    log.info("packed and separate losses agree on %d documents (difference %.1e)", len(documents), found.difference)
    return found


def compare(model: Any, documents: Sequence[Sequence[int]], rounded: bool = False) -> Isolation:
    """Compare documents (token ids) packed, alone, and behind another first one, in the caller's mode and precision."""
    packed = _losses(model, documents)
    alone = [_losses(model, [document])[0] for document in documents]
    other = _losses(model, [_another(documents), *documents[1:]])
    leak = max(float((a - b).abs().max()) for a, b in zip(packed[1:], other[1:], strict=True))
    means = [tuple(float(each.mean()) for each in losses) for losses in (packed, alone)]
    return Isolation(means[0], means[1], leak, rounded)


def _documents(rows: Rows) -> list[list[int]]:
    """Token ids of the first few documents of the first row that has several, cut short."""
    if rows.packs is None:
        return []
    for index in range(len(rows)):
        members = [member for member in rows.members(index) if rows.documents.length[member] > 1]
        if len(members) > 1:
            return [rows.document(member)["input_ids"][:TOKENS] for member in members[:DOCUMENTS]]
    return []


def _another(documents: Sequence[Sequence[int]]) -> list[int]:
    """Other tokens than the first document's, as many."""
    first, last = list(documents[0]), list(documents[-1])
    if first != first[::-1]:
        return first[::-1]
    return [last[index % len(last)] for index in range(len(first))]


def _losses(model: Any, documents: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Cross entropy of every token but the first of each document, laid end to end; fp32 [tokens - 1] each."""
    lengths = [len(document) for document in documents]
    tokens = [token for document in documents for token in document]
    row = {"input_ids": tokens, "labels": tokens, "lengths": lengths, "source": "", "row": 0}
    batch, _ = split_batch(FlatCollator()([row]))
    device = model.get_input_embeddings().weight.device
    targets = batch.pop("shift_labels").to(device)
    del batch["labels"]
    logits = model(**{key: value.to(device) for key, value in batch.items()}, use_cache=False).logits
    wanted = targets != IGNORE
    losses = torch.nn.functional.cross_entropy(logits[wanted].float(), targets[wanted], reduction="none")
    return list(losses.cpu().split([length - 1 for length in lengths]))


def _rounds(model: Any) -> bool:
    """Whether a forward pass here computes in less than fp32."""
    device = model.get_input_embeddings().weight.device.type
    if torch.is_autocast_enabled(device) or getattr(model, "is_loaded_in_8bit", False):
        return True
    return any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters())


def _reason(model: Any, found: Isolation) -> str:
    kind = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
    attention = getattr(model.config, "_attn_implementation", None)
    packed, alone = (", ".join(f"{value:.4f}" for value in values) for values in (found.packed, found.alone))
    text = f"the documents of a pack are not apart in {kind} with attention {attention}: loss {packed} packed, {alone} alone"
    if found.leak > EXACT_LEAK:
        text += f"; another first document changes the later ones by {found.leak:.4f}"
    return text


def _remedy(model: Any) -> str:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention = getattr(base.config, "_attn_implementation", None)
    offered = getattr(base, "_supports_sdpa", False) and attention != "sdpa"
    other = "model.attn_implementation=sdpa, or " * offered
    return f"{other}dataset.packing=false"
