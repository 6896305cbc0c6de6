"""Causal attention of one document on the CPU in 16 bits, by blocks of queries.

PyTorch's fused kernel is optimized for memory: on CPUs without matrix tiles its 16-bit version spends more time between
its small products than in them. Here a block of queries is multiplied with all keys up to its end in one product of the
vendor's library, and nothing above the diagonal blocks is computed. Queries that share keys (grouped-query attention)
are in one product, so keys are never repeated. Probabilities of short documents are kept for the backward pass, those
of longer ones are recomputed block by block, so that memory grows only linearly with the length.

Sums are fp32 inside each product; scores and probabilities are rounded to 16 bits between them, as in transformers'
eager attention.
"""

from __future__ import annotations

import math
from typing import Any

import torch

BLOCK = 128  # approximate number of queries; the fastest of 64, 128 and 256 from 64 to 2048 tokens
LANES = 16  # products are faster if the block is a multiple of this
KEPT = 512  # maximum tokens of a document whose probabilities are kept: less than 64 KiB per token with 9 heads


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention of each token to itself and those before it.

    Args:
        query: [key heads, queries of each, tokens, dimension].
        key, value: [key heads, keys, dimension]; if there are more keys than tokens, the last ones are the tokens'.
        scale: factor of the scores.

    Returns:
        Same shape as `query`; must not be written to.
    """
    return _Causal.apply(query, key, value, scale)  # type: ignore[no-any-return]


def kept_probabilities(length: int) -> int:
    """Number of probabilities per head kept for the backward pass of a document of this many tokens."""
    return sum((end - start) * end for start, end, _ in _blocks(length, length)) if length <= KEPT else 0


def _blocks(tokens: int, keys: int) -> list[tuple[int, int, int]]:
    """For each block: its first query, the one after its last, and the number of keys up to there. Blocks are about
    equal."""
    size = LANES * math.ceil(tokens / max(1, round(tokens / BLOCK)) / LANES)
    ends = [(start, min(tokens, start + size)) for start in range(0, tokens, size)]
    return [(start, end, keys - tokens + end) for start, end in ends]


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, scale: float) -> torch.Tensor:
        """As `causal_attention`; the probabilities of a short document are kept for `backward`."""
        outs, kept = [], []
        for start, end, keys in _blocks(query.shape[2], key.shape[1]):
            found = _probabilities(_queries(query, start, end), key[:, :keys], end - start, scale)
            outs.append(_apart(torch.bmm(found, value[:, :keys]), end - start))
            if key.shape[1] <= KEPT:
                kept.append(found)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale = scale
        return _joined(outs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        """Gradients of query, key and value."""
        query, key, value, *kept = ctx.saved_tensors
        to_query: list[torch.Tensor] = []
        to_key: Any = None
        to_value: Any = None
        for index, (start, end, keys) in reversed(list(enumerate(_blocks(query.shape[2], key.shape[1])))):
            some, above = _queries(query, start, end), _queries(grad, start, end)
            found = kept[index] if kept else _probabilities(some, key[:, :keys], end - start, ctx.scale)
            to_value = _plus(to_value, torch.bmm(found.transpose(1, 2), above))
            gradient = torch.bmm(above, value[:, :keys].transpose(1, 2))
            gradient = torch.ops.aten._softmax_backward_data(gradient, found, -1, found.dtype)
            to_query.append(_apart(torch.bmm(gradient, key[:, :keys]), end - start))
            to_key = _plus(to_key, torch.bmm(gradient.transpose(1, 2), some))
        to_queries, to_keys = _joined(to_query[::-1]).mul_(ctx.scale), to_key.mul_(ctx.scale).to(key.dtype)
        return to_queries, to_keys, to_value.to(value.dtype), None


def _queries(query: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """The queries of a block, those that share a key head in one matrix: [key heads, queries, dimension]."""
    return query[:, :, start:end].flatten(1, 2)


def _apart(rows: torch.Tensor, size: int) -> torch.Tensor:
    """The inverse of `_queries`: [key heads, queries of each, size, dimension]."""
    return rows.unflatten(1, (-1, size))


def _joined(blocks: list[torch.Tensor]) -> torch.Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)


def _plus(total: torch.Tensor | None, block: torch.Tensor) -> torch.Tensor:
    """Add a block's contribution to the keys up to its end; the first block passed covers all keys."""
    if total is None:
        return block
    total = total.float()  # 16 bits would round in each addition
    total[:, : block.shape[1]] += block
    return total


def _probabilities(query: torch.Tensor, key: torch.Tensor, size: int, scale: float) -> torch.Tensor:
    """Probabilities of a block of `size` queries over all keys up to its end: [key heads, queries, keys]."""
    scores = query.new_empty(len(query), query.shape[1], key.shape[1])  # whose content is ignored with a beta of 0
    scores.baddbmm_(query, key.transpose(1, 2), beta=0, alpha=scale)
    later = query.new_full((size, size), float("-inf")).triu_(1)
    scores.view(len(key), -1, size, key.shape[1])[..., -size:] += later
    return torch.softmax(scores, -1)
