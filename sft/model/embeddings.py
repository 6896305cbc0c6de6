"""Embedding rows for tokens that the model was not trained with: resizing and initialization."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from sft.model.tokens import added_rows, needed_rows

UNTRAINED = 1e-16  # a row whose largest magnitude is below this is reserved and untrained (Llama 3's base models)


def fit_embeddings(model: Any, tokenizer: Any, control_tokens: Iterable[str] = ()) -> list[int]:
    """Fit the model's embeddings to the tokenizer, and initialize untrained rows.

    They grow only if necessary: many models have spare rows. A new row is initialized with the embedding of the token
    that it replaces (the end of a turn from the end of text), else with the mean of all rows.

    Args:
        model: the base model, changed in place; deterministic for a given base and tokenizer.
        tokenizer: what the model will be trained with.
        control_tokens: the chat template's tokens; those that are in the vocabulary but were never trained count as new.

    Returns:
        Ids of the rows that have to be trained, ascending; empty where all tokens are known to the model.
    """
    matrices = _matrices(model)
    old = matrices[0].shape[0]
    starts = dict(added_rows(tokenizer))
    starts.update(dict.fromkeys(_untrained(matrices[0], tokenizer, control_tokens), tokenizer.eos_token_id))
    rows = needed_rows(tokenizer)
    if rows > old:
        starts.update({row: starts.get(row) for row in range(old, rows)})
        # the rows are overwritten, so their initialization must not draw random numbers
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(rows, mean_resizing=False)
    if not starts:
        return []
    fresh = set(starts)
    for matrix in _matrices(model):
        _start_rows(matrix, starts, [row for row in range(old) if row not in fresh])
    return sorted(starts)


def embedding_names(model: Any) -> list[str]:
    """Module names of the input embedding and, where it has weights of its own, the output layer."""
    wanted = [model.get_input_embeddings()]
    if not is_tied(model) and model.get_output_embeddings() is not None:
        wanted.append(model.get_output_embeddings())
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(module)] for module in wanted]


def is_tied(model: Any) -> bool:
    """Whether the output layer uses the input embedding's weights."""
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def _matrices(model: Any) -> list[torch.Tensor]:
    """The weights [vocabulary, hidden] of input and output layer; one where they are tied."""
    found = [model.get_input_embeddings().weight]
    if not is_tied(model) and model.get_output_embeddings() is not None:
        found.append(model.get_output_embeddings().weight)
    return found


def _untrained(matrix: torch.Tensor, tokenizer: Any, tokens: Iterable[str]) -> list[int]:
    ids = [tokenizer.convert_tokens_to_ids(token) for token in tokens]
    known = sorted({i for i in ids if i is not None and i < matrix.shape[0]})
    if not known or matrix.is_meta:
        return []
    largest = matrix.detach()[known].abs().amax(dim=1)
    return [row for row, size in zip(known, largest.tolist(), strict=True) if size <= UNTRAINED]


@torch.no_grad()
def _start_rows(matrix: torch.Tensor, starts: dict[int, int | None], trained: list[int]) -> None:
    if matrix.is_meta:
        return
    source = {row: start for row, start in starts.items() if start is not None and start not in starts}
    mean = matrix[trained].float().mean(dim=0) if len(source) < len(starts) else None
    for row in starts:
        value = matrix[source[row]].float() if row in source else mean
        matrix[row] = value.to(matrix.dtype)  # type: ignore[union-attr]
