"""`attn_implementation=varlen`: padding-free batches of concatenated documents, with attention within each document.

A batch is one row of all its documents' tokens with their boundaries as `cu_seq_lens_q`, the name that transformers'
flash attention uses. On the CPU attention is computed per document (see `causal` for 16 bits); on CUDA for all in one
call of flash-attention, if it is installed, or of torch's own `torch.nn.attention.varlen`. Batches without boundaries
(generation, padded evaluation) are computed as with `sdpa`.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sft.kernels.causal import causal_attention

VARLEN = "varlen"


def register() -> None:
    """Register `varlen` with transformers; idempotent."""
    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, varlen_mask)


def varlen_mask(attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """No mask without padding, because documents have boundaries; otherwise the mask of `sdpa`."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **kwargs)


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within documents.

    Args:
        query: [1, heads, tokens, dimension]; key and value may have fewer heads (grouped queries).
        sliding_window: number of keys that a token attends to, itself included; None: all before it.
        cu_seq_lens_q: [documents + 1], the start of each document, and the end of the last.
        cu_seq_lens_k: the same for the keys; if there are more of them, documents have a shared prefix, which comes
            first (see `sft.data.batches.prefix`). Only on the CPU.
        max_length_q: tokens of the longest document.

    Returns:
        [1, tokens, heads, dimension], and no weights.

    Raises:
        ValueError: the model needs something this attention does not support (soft-capping, sinks).
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError("varlen attention does not support soft-capping or sinks")
    if attention_mask is not None or cu_seq_lens_q is None:
        if attention_mask is None and _starts_again(kwargs.get("position_ids")):
            raise ValueError("packed documents without cu_seq_lens_q would attend to each other")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    shared = _shared(cu_seq_lens_q, cu_seq_lens_k)
    if query.is_cuda:
        if shared:
            raise ValueError("shared prefixes are only supported on the CPU")
        return _fused(query, key, value, cu_seq_lens_q, int(max_length_q or 0), scaling, dropout, sliding_window), None
    return _one_by_one(query, key, value, cu_seq_lens_q.diff().tolist(), shared, scaling, dropout, sliding_window), None


def _shared(borders: torch.Tensor, key_borders: torch.Tensor | None) -> int:
    """Length of the shared prefix; 0 for none."""
    if key_borders is None or int(key_borders[-1]) == int(borders[-1]):
        return 0
    return int(borders[1])


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    shared: int,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    """One call per document. The backward passes of `split` and `cat` touch each token once; those of slices would
    not."""
    if query.dtype.itemsize == 2 and not dropout and (window is None or max(lengths) + shared <= window):
        return _by_blocks(query, key, value, lengths, shared, query.shape[-1] ** -0.5 if scaling is None else scaling)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    found = []
    for q, k, v in zip(query.split(lengths, 2), *(_seen(each, lengths, shared) for each in (key, value)), strict=True):
        mask = _band(q.shape[2], k.shape[2], window, q.device)
        found.append(
            scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, scale=scaling).transpose(1, 2)
        )
    return torch.cat(found, 1)


def _by_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], shared: int, scaling: float
) -> torch.Tensor:
    """Each document by `causal_attention`, with the heads that share keys together."""
    heads = key.shape[1]
    queries = query[0].unflatten(0, (heads, -1)).split(lengths, 2)
    parts = zip(queries, *(_seen(each[0], lengths, shared) for each in (key, value)), strict=True)
    return torch.cat([causal_attention(q, k, v, scaling) for q, k, v in parts], 2).flatten(0, 1).transpose(0, 1)[None]


def _seen(keys: torch.Tensor, lengths: list[int], shared: int) -> list[torch.Tensor]:
    """The keys of each document: the shared prefix, followed by its own."""
    parts = list(keys.split(lengths, -2))
    return [parts[0], *(torch.cat([parts[0], part], -2) for part in parts[1:])] if shared else parts


def _band(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """The mask of the last queries over this many keys; None if plain causality suffices."""
    if queries == keys and (window is None or keys <= window):
        return None
    back = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    return (back >= 0) & (back < (keys if window is None else window))


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    longest: int,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    """One kernel call for all documents. Both libraries' windows count the keys to the left of a token."""
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))  # [tokens, heads, dimension]
    sight = (-1 if window is None else window - 1, 0)
    if importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(
            q,
            k,
            v,
            cu_seqlens_q=borders,
            cu_seqlens_k=borders,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            dropout_p=dropout,
            softmax_scale=scaling,
            causal=True,
            window_size=sight,
        )[None]
    from torch.nn.attention.varlen import varlen_attn

    if dropout:
        raise ValueError("torch's varlen attention has no dropout: install flash-attn, or set the model's to 0")
    grouped = q.shape[1] != k.shape[1]
    out: Any = varlen_attn(
        q, k, v, borders, borders, longest, longest, scale=scaling, window_size=sight, enable_gqa=grouped
    )
    return out[None]


def _starts_again(position_ids: Any) -> bool:
    """Whether positions are reset within a row, which means several documents."""
    return isinstance(position_ids, torch.Tensor) and bool((position_ids.diff(dim=-1) < 0).any())
