"""The tokens that all documents of a batch begin with, computed once.

Rows of one dataset often begin alike: the same system prompt, the same list of tools, the template's own first tokens.
In a causal model such tokens have the same hidden states in every document, so a batch laid end to end holds them once,
and each document's attention begins with them. Loss and gradients are those of the documents one by one, as long as
nothing draws by position (dropout, noise on embeddings); no token that is trained is shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft.data.batches.collate import IGNORE, FlatCollator, about_rows, lengths_of, shifted

LEAST = 8  # tokens; fewer are not worth another document


class SharingCollator(FlatCollator):
    """As FlatCollator; documents that begin alike follow their common beginning, each without it.

    `cu_seq_lens_q` then has the borders of what is there, the beginning first, and `cu_seq_lens_k` those of what each
    part attends to: the beginning itself, and for every document the beginning and its own.
    """

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import torch

        documents = [document for feature in features for document in _documents(feature)]
        shared = common_beginning(documents)
        if shared < LEAST:
            return super().__call__(features)
        ids, labels = (np.concatenate([d[i][shared:] for d in documents]) for i in (0, 1))
        rest = [len(d[0]) - shared for d in documents]
        targets = [shifted(d[1], [len(d[1])])[shared:] for d in documents]
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
        return {**batch, **about_rows(features)}


def common_beginning(documents: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """How many tokens all documents begin with alike, none of them trained, nor the token after them.

    Args:
        documents: (input_ids, labels) of each, [tokens].

    Returns:
        0 for less than two documents; each document has at least one token more.
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
    """(input_ids, labels) of each of a row's documents; the first token of each is no label."""
    borders = np.cumsum(lengths_of(feature))[:-1]
    ids, labels = (np.array(feature[key], np.int64) for key in ("input_ids", "labels"))
    found = list(zip(np.split(ids, borders), np.split(labels, borders), strict=True))
    for _, each in found:
        each[:1] = IGNORE
    return found
