"""Loss, perplexity and accuracy per trained token, per source and in total; independent of the batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.data.batches.collate import FlatCollator, PaddedCollator, split_batch, uses_cu_seqlens
from sft.data.documents import IGNORE
from sft.distributed.ranks import Ranks
from sft.evaluation.eval_mode import eval_mode
from sft.evaluation.generate import by_length
from sft.evaluation.metrics import perplexity
from sft.model.head import output_layer_skipped, supports_logits_to_keep

# of a padding-free batch with its shift_labels: logits (or hidden states, where the output layer is applied by chunks)
# [predicted tokens, columns]
Outputs = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class TokenTotals:
    """Sums over predicted tokens, which add up over rows and sources.

    Args:
        loss: summed cross entropy, in nats.
        correct: tokens that were predicted correctly (argmax).
        tokens: tokens predicted.
    """

    loss: float = 0.0
    correct: int = 0
    tokens: int = 0

    def __add__(self, other: TokenTotals) -> TokenTotals:
        return TokenTotals(self.loss + other.loss, self.correct + other.correct, self.tokens + other.tokens)

    @property
    def mean_loss(self) -> float:
        """Nats per token; NaN without tokens."""
        return self.loss / self.tokens if self.tokens else float("nan")

    @property
    def accuracy(self) -> float:
        """Share of correctly predicted tokens; NaN without tokens."""
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
    head: Any = None,
    ranks: Ranks | None = None,
    outputs: Outputs | None = None,
    keep: Callable[[dict[str, list[TokenTotals]]], None] | None = None,
) -> dict[str, float]:
    """Measure encoded rows by source.

    Args:
        model: a causal language model.
        sources: rows by source name, each with input_ids and labels (-100 where nothing is predicted), and `lengths`
            where a row packs several documents.
        batch_size: rows per batch.
        prefix: of the figures' names.
        progress: called with rows done and rows in all, after each batch.
        head: the output layer, applied in chunks; None: the model computes the logits of a batch at once.
        ranks: processes that each measure a part of the batches; the results equal those of one process.
        outputs: computes a padding-free batch in place of the model.
        keep: called with the totals of each source's rows.

    Returns:
        `{prefix}loss`, `{prefix}perplexity` and `{prefix}token_accuracy` over all tokens; with several sources the same
        for each as `{prefix}{source}_loss` and so on.
    """
    compact = {name: [_compact(row) for row in rows] for name, rows in sources.items()}
    every = [row for rows in compact.values() for row in rows]
    totals = measure(model, every, batch_size=batch_size, progress=progress, head=head, ranks=ranks, outputs=outputs)
    figures = sum(totals, TokenTotals()).metrics(prefix)
    start, by_source = 0, {}
    for name, rows in compact.items():
        by_source[name] = totals[start : start + len(rows)]
        if len(compact) > 1:
            figures |= sum(by_source[name], TokenTotals()).metrics(f"{prefix}{name}_")
        start += len(rows)
    if keep is not None:
        keep(by_source)
    return figures


def measure(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
    head: Any = None,
    ranks: Ranks | None = None,
    outputs: Outputs | None = None,
) -> list[TokenTotals]:
    """Totals of each row (a document, or a pack of several), in the given order; the model is unchanged afterwards."""
    ranks = ranks or Ranks()
    totals = [TokenTotals()] * len(rows)
    done = 0
    batches = list(by_length([len(row["input_ids"]) for row in rows], batch_size))
    turns = [batches[at : at + ranks.world_size] for at in range(0, len(batches), ranks.world_size)]
    with eval_mode(model):
        for turn in turns:
            # with fewer batches than ranks the others repeat the first, because sharded weights need every rank
            batch, counts = (turn[ranks.rank], True) if ranks.rank < len(turn) else (turn[0], False)
            found = _measure_batch(model, [rows[i] for i in batch], head, outputs)
            for i, total in zip(batch, found, strict=True):
                totals[i] = total if counts else TokenTotals()
            done += sum(map(len, turn))
            if progress:
                progress(done, len(rows))
    return _gather_totals(totals, ranks)


def _gather_totals(totals: list[TokenTotals], ranks: Ranks) -> list[TokenTotals]:
    """Each row's total from the rank that has it; exact, because the others add zero."""
    if not ranks.is_distributed or not totals:
        return totals
    flat = ranks.all_reduce_sum(
        [float(figure) for total in totals for figure in (total.loss, total.correct, total.tokens)]
    )
    return [TokenTotals(flat[at], int(flat[at + 1]), int(flat[at + 2])) for at in range(0, len(flat), 3)]


def _compact(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's tokens and labels as arrays, which take a tenth of the memory of lists."""
    import numpy

    arrays = {key: numpy.asarray(row[key], dtype=numpy.int32) for key in ("input_ids", "labels")}
    return {**arrays, "lengths": row.get("lengths") or [len(arrays["input_ids"])]}


def _measure_batch(
    model: Any, rows: Sequence[Mapping[str, Any]], head: Any, outputs: Outputs | None
) -> list[TokenTotals]:
    """Totals of rows, padding-free where the model's attention uses cu_seqlens, else padded."""
    flat = uses_cu_seqlens(model)
    batch, _ = split_batch((FlatCollator() if flat else PaddedCollator(pad_token_id=0))(rows))
    targets = batch.pop("shift_labels")
    del batch["labels"]
    wanted = targets != IGNORE
    if not wanted.any():
        return [TokenTotals()] * len(rows)
    device = model.get_input_embeddings().weight.device
    inputs = {key: value.to(device) if hasattr(value, "to") else value for key, value in batch.items()}
    if outputs is not None and flat:
        logits = outputs({**inputs, "shift_labels": targets})
    else:
        with output_layer_skipped(head):
            logits = _logits_at(model, inputs, wanted.to(device))  # with a head these are hidden states
    losses, hits = _score_tokens(logits, targets[wanted].to(logits.device), head)
    return _per_row(losses, hits, _owners(wanted, rows), len(rows))


def _owners(wanted: Any, rows: Sequence[Mapping[str, Any]]) -> Any:
    """The row that each predicted position belongs to."""
    import torch

    if len(wanted) == len(rows):
        return wanted.nonzero()[:, 0]
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return torch.arange(len(rows)).repeat_interleave(lengths)[wanted[0]]


def _per_row(losses: Any, hits: Any, owners: Any, count: int) -> list[TokenTotals]:
    found = []
    for row in range(count):
        mine = owners == row
        found.append(TokenTotals(float(losses[mine].sum()), int(hits[mine].sum()), int(mine.sum())))
    return found


def _logits_at(model: Any, batch: Mapping[str, Any], wanted: Any) -> Any:
    """Logits [wanted positions, vocabulary]; a model without `logits_to_keep` computes them all."""
    chosen = {"logits_to_keep": wanted} if supports_logits_to_keep(model) else {}
    out = model(**batch, use_cache=False, **chosen).logits
    return out.reshape(-1, out.shape[-1]) if chosen else out[wanted]


def _score_tokens(logits: Any, targets: Any, head: Any, chunk: int = 1024) -> tuple[Any, Any]:
    """Cross entropy (float64) and whether the likeliest token is right, for each row; one chunk at a time in
    float32."""
    import torch

    losses, hits = [], []
    for start in range(0, len(targets), chunk):
        part, wanted = logits[start : start + chunk], targets[start : start + chunk]
        part = (part if head is None else head(part.to(_dtype(head)))).float()
        losses.append(torch.nn.functional.cross_entropy(part, wanted, reduction="none").double().cpu())
        hits.append((part.argmax(-1) == wanted).cpu())
    return torch.cat(losses), torch.cat(hits)


def _dtype(head: Any) -> Any:
    """The dtype of the output layer; accelerate returns the hidden states of a 16-bit model in fp32."""
    import torch

    weight = getattr(head, "weight", None)
    return weight.dtype if weight is not None and weight.is_floating_point() else torch.float32
