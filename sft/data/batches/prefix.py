"""The prefix that all documents of a batch share, computed once.

Rows of one dataset often share a prefix: the system prompt, the list of tools, the template's own first tokens. In a
causal model such tokens have the same hidden states in every document, so a padding-free batch holds them once, and
every document attends to them. Loss and gradients equal those of the documents one by one, as long as nothing is
drawn by position (dropout, noise on embeddings); trained tokens are never shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft.data.batches.collate import IGNORE, FlatCollator, lengths_of, row_metadata, shift_labels

MIN_SHARED_TOKENS = 8  # a shorter prefix is not worth an extra document


class SharedPrefixCollator(FlatCollator):
    """Like FlatCollator, but a common prefix comes first and the documents follow without it.

    `cu_seq_lens_q` then has the boundaries of the tokens in the batch, the prefix first, and `cu_seq_lens_k` those of
    what each attends to: the prefix itself, and for every document the prefix and its own tokens.
    """

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import torch

        documents = [document for feature in features for document in _documents(feature)]
        shared = common_prefix_length(documents)
        if shared < MIN_SHARED_TOKENS:
            return super().__call__(features)
        ids, labels = (np.concatenate([d[i][shared:] for d in documents]) for i in (0, 1))
        rest = [len(d[0]) - shared for d in documents]
        targets = [shift_labels(d[1], [len(d[1])])[shared:] for d in documents]
        start, none = documents[0][0][:shared], np.full(shared, IGNORE, np.int64)
        parts = {
            "input_ids": [start, ids],
            "labels": [none, labels],
            "position_ids": [np.arange(shared), *(np.arange(shared, shared + length) for length in rest)],
            "shift_labels": [none, *targets],
        }
        batch: dict[str, Any] = {key: torch.from_numpy(np.concatenate(each))[None] for key, each in parts.items()}
        for side, lengths in (("q", [shared, *rest]), ("k", [shared, *(shared + length for length in rest)])):
            batch[f"cu_seq_lens_{side}"] = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
            batch[f"max_length_{side}"] = max(lengths)
        return {**batch, **row_metadata(features)}


def common_prefix_length(documents: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """The length of the common prefix of all documents; neither its tokens nor the one after them are trained.

    Args:
        documents: (input_ids, labels) of each, [tokens].

    Returns:
        0 for fewer than two documents; each document is at least one token longer.
    """
    if len(documents) < 2:
        return 0
    most = min(len(ids) for ids, _ in documents) - 1
    first = documents[0][0]
    for ids, labels in documents:
        differs = np.flatnonzero(ids[:most] != first[:most])
        most = int(differs[0]) if len(differs) else most
        trained = np.flatnonzero(labels[1 : most + 1] != IGNORE)  # the last one shared predicts the token after it
        most = int(trained[0]) if len(trained) else most
    return most


def _documents(feature: Mapping[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(input_ids, labels) of each of a row's documents; the first token of each is not a label."""
    borders = np.cumsum(lengths_of(feature))[:-1]
    ids, labels = (np.array(feature[key], np.int64) for key in ("input_ids", "labels"))
    found = list(zip(np.split(ids, borders), np.split(labels, borders), strict=True))
    for _, each in found:
        each[:1] = IGNORE
    return found
