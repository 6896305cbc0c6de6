"""Loss, perplexity and accuracy per trained token, of each source and of all; the batch size changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.evaluation.generate import by_length
from sft.evaluation.metrics import perplexity
from sft.evaluation.undisturbed import undisturbed

IGNORE = -100


@dataclass(frozen=True)
class TokenTotals:
    """Sums over predicted tokens, which add up over rows and sources.

    Args:
        loss: summed cross entropy, in nats.
        correct: tokens whose likeliest prediction was right.
        tokens: tokens predicted.
    """

    loss: float = 0.0
    correct: int = 0
    tokens: int = 0

    def __add__(self, other: TokenTotals) -> TokenTotals:
        return TokenTotals(self.loss + other.loss, self.correct + other.correct, self.tokens + other.tokens)

    @property
    def mean_loss(self) -> float:
        """Nats per token; NaN without a token."""
        return self.loss / self.tokens if self.tokens else float("nan")

    @property
    def accuracy(self) -> float:
        """Share of tokens predicted right; NaN without a token."""
        return self.correct / self.tokens if self.tokens else float("nan")

    def metrics(self, prefix: str = "eval_") -> dict[str, float]:
        """`{prefix}loss`, `{prefix}perplexity`, `{prefix}token_accuracy`."""
        loss = self.mean_loss
        return {
            f"{prefix}loss": loss,
            f"{prefix}perplexity": perplexity(loss),
            f"{prefix}token_accuracy": self.accuracy,
        }


def evaluate_loss(
    model: Any,
    sources: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    batch_size: int = 8,
    prefix: str = "eval_",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Measure encoded rows by source.

    Args:
        model: a causal language model.
        sources: rows by source name, each with input_ids and labels (-100 where nothing is predicted), and `lengths`
            where a row packs several documents.
        batch_size: documents side by side.
        prefix: of the figures' names.
        progress: called with documents done and documents in all, after each batch.

    Returns:
        `{prefix}loss`, `{prefix}perplexity` and `{prefix}token_accuracy` over all tokens; with several sources the same
        for each as `{prefix}{source}_loss` and so on.
    """
    documents = {name: list(split_documents(rows)) for name, rows in sources.items()}
    every = [document for rows in documents.values() for document in rows]
    totals = measure(model, every, batch_size=batch_size, progress=progress)
    figures = sum(totals, TokenTotals()).metrics(prefix)
    start = 0
    for name, rows in documents.items():
        if len(documents) > 1:
            figures |= sum(totals[start : start + len(rows)], TokenTotals()).metrics(f"{prefix}{name}_")
        start += len(rows)
    return figures


def split_documents(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Any, Any]]:
    """Yield (input_ids, labels) of each document, arrays [tokens]; packed rows fall apart by their `lengths`."""
    import numpy

    for row in rows:
        ids, labels = (
            numpy.asarray(row[key], dtype=numpy.int32) for key in ("input_ids", "labels")
        )  # a tenth of lists
        start = 0
        lengths = row.get("lengths")
        for length in [len(ids)] if lengths is None else lengths:
            yield ids[start : start + length], labels[start : start + length]
            start += length


def measure(
    model: Any,
    documents: Sequence[tuple[Any, Any]],
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[TokenTotals]:
    """Total each (input_ids, labels) document, in the given order; the model is left as it was."""
    totals = [TokenTotals()] * len(documents)
    done = 0
    with undisturbed(model):
        for batch in by_length([len(ids) for ids, _ in documents], batch_size):
            for i, total in zip(batch, _measure_batch(model, [documents[i] for i in batch]), strict=True):
                totals[i] = total
            done += len(batch)
            if progress:
                progress(done, len(documents))
    return totals


def _measure_batch(model: Any, documents: Sequence[tuple[Any, Any]]) -> list[TokenTotals]:
    """Total documents padded side by side on the right, with logits at predicted positions alone."""
    import torch

    width = max(len(ids) for ids, _ in documents)
    input_ids = torch.zeros((len(documents), width), dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    targets = torch.full_like(input_ids, IGNORE)  # targets[b, t] is what position t has to predict
    for row, (ids, labels) in enumerate(documents):
        input_ids[row, : len(ids)] = torch.as_tensor(ids)
        attention_mask[row, : len(ids)] = 1
        targets[row, : max(len(ids) - 1, 0)] = torch.as_tensor(labels[1:], dtype=torch.long)
    wanted = targets != IGNORE
    if not wanted.any():
        return [TokenTotals()] * len(documents)
    device = model.get_input_embeddings().weight.device
    logits = _logits_at(model, input_ids.to(device), attention_mask.to(device), wanted.to(device))
    flat = targets[wanted].to(logits.device)
    losses, hits = _score_tokens(logits, flat)
    rows = wanted.nonzero()[:, 0]
    found = []
    for row in range(len(documents)):
        mine = rows == row
        found.append(TokenTotals(float(losses[mine].sum()), int(hits[mine].sum()), int(mine.sum())))
    return found


def _logits_at(model: Any, input_ids: Any, attention_mask: Any, wanted: Any) -> Any:
    """Logits [wanted positions, vocabulary]; a model that cannot choose positions computes them all."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    chooses = "logits_to_keep" in inspect.signature(inner.forward).parameters
    chosen = {"logits_to_keep": wanted} if chooses and type(inner).__module__.startswith("transformers.") else {}
    out = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **chosen).logits
    return out.reshape(-1, out.shape[-1]) if chosen else out[wanted]


def _score_tokens(logits: Any, targets: Any, chunk: int = 1024) -> tuple[Any, Any]:
    """Cross entropy (float64) and whether the likeliest token is right, for each row; a chunk in float32 at a time."""
    import torch

    losses, hits = [], []
    for start in range(0, len(targets), chunk):
        part, wanted = logits[start : start + chunk].float(), targets[start : start + chunk]
        losses.append(torch.nn.functional.cross_entropy(part, wanted, reduction="none").double().cpu())
        hits.append((part.argmax(-1) == wanted).cpu())
    return torch.cat(losses), torch.cat(hits)
