"""Rows to batches of tensors: padded, or with no padding at all.

Both give input_ids, labels, shift_labels and, where a model cannot count them itself, position_ids.
`shift_labels[b, t]` is the token that the model has to predict at position t, that is `labels[b, t + 1]`, and -100 at
the last token of every document. So a loss over `shift_labels` is computed where it is not -100, without another shift
and never across a document boundary.

Beside the tensors a batch names its rows, for messages: `source` and `row` (one entry per document, as strings and
numbers) and `lengths` (documents' tokens in order). They are not arguments of a model: take them out with
`split_batch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft.data.documents import IGNORE

ROW_METADATA = ("source", "row", "lengths")


def split_batch(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch as (what the model takes, what names its rows)."""
    about = {key: batch[key] for key in ROW_METADATA if key in batch}
    return {key: value for key, value in batch.items() if key not in ROW_METADATA}, about


def uses_cu_seqlens(model: Any) -> bool:
    """Whether a model's attention isolates documents by `cu_seq_lens_q` alone (`attn_implementation=varlen`)."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None) == "varlen"


def shift_labels(labels: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """The label to be predicted at each position: the next token's, -100 at a document's last token.

    Args:
        labels: [tokens], concatenated documents, padding after them allowed.
        lengths: tokens of each document.
    """
    targets = np.full_like(labels, IGNORE)
    targets[:-1] = labels[1:]
    targets[np.cumsum(lengths) - 1] = IGNORE
    return targets


def positions(lengths: Sequence[int]) -> np.ndarray:
    """0, 1, 2, ... from the start of each document, int64 [sum of lengths]."""
    counts = np.asarray(lengths, dtype=np.int64)
    starts = np.cumsum(counts) - counts
    return np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(starts, counts)


@dataclass
class PaddedCollator:
    """Rows padded to the longest: tensors [rows, tokens].

    With one document a row there is an attention_mask, and position_ids only where padding comes first. With packs
    there is no mask: models then isolate documents by position_ids that restart, and padding is a document of its
    own.

    Args:
        pad_token_id: fills input_ids; labels are -100 there.
        padding_side: where it goes. Packs are padded on the right, whatever it says.
        pad_to_multiple_of: round the width up.
    """

    pad_token_id: int
    padding_side: str = "right"
    pad_to_multiple_of: int | None = None

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import torch

        packed = any(len(lengths_of(feature)) > 1 for feature in features)
        width = max(len(feature["input_ids"]) for feature in features)
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        shape = (len(features), width)
        batch = {
            "input_ids": np.full(shape, self.pad_token_id, np.int64),
            "labels": np.full(shape, IGNORE, np.int64),
            "position_ids": np.zeros(shape, np.int64),
            "shift_labels": np.full(shape, IGNORE, np.int64),
        }
        mask = np.zeros(shape, np.int64)
        for index, feature in enumerate(features):
            here = _place(len(feature["input_ids"]), width, left=self.padding_side == "left" and not packed)
            for key, values in _flat([feature]).items():
                batch[key][index, here] = values
            mask[index, here] = 1
            if packed:
                batch["position_ids"][index, here.stop :] = np.arange(width - here.stop)
        if not packed:
            batch["attention_mask"] = mask
            if self.padding_side != "left":
                del batch["position_ids"]  # models derive these by themselves; some take no positions at all
        return {**{key: torch.from_numpy(value) for key, value in batch.items()}, **row_metadata(features)}


@dataclass
class FlatCollator:
    """All documents of all rows concatenated without padding: tensors [1, tokens], position_ids that restart.

    Their boundaries are given under the names that transformers uses for flash attention: cu_seq_lens_q and _k
    (int32 [documents + 1]) and the longest document's length, max_length_q and _k. No attention_mask, not even one of
    ones: it would turn off the isolation of documents in the models.
    """

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import torch

        batch: dict[str, Any] = {key: torch.from_numpy(value).unsqueeze(0) for key, value in _flat(features).items()}
        about = row_metadata(features)
        ends = np.cumsum([0, *about["lengths"]], dtype=np.int32)
        for side in "qk":
            batch[f"cu_seq_lens_{side}"] = torch.from_numpy(ends)
            batch[f"max_length_{side}"] = max(about["lengths"])
        return {**batch, **about}


def _flat(features: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Concatenated documents, int64 [tokens]; the first token of each is not a label."""
    lengths = [length for feature in features for length in lengths_of(feature)]
    labels = np.concatenate([np.asarray(feature["labels"], np.int64) for feature in features])
    labels[np.cumsum(lengths) - np.asarray(lengths)] = IGNORE
    return {
        "input_ids": np.concatenate([np.asarray(feature["input_ids"], np.int64) for feature in features]),
        "labels": labels,
        "position_ids": positions(lengths),
        "shift_labels": shift_labels(labels, lengths),
    }


def lengths_of(feature: Mapping[str, Any]) -> list[int]:
    """Tokens of each of a row's documents."""
    return list(feature.get("lengths") or [len(feature["input_ids"])])


def _place(length: int, width: int, left: bool) -> slice:
    return slice(width - length, width) if left else slice(0, length)


def row_metadata(features: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Source and row of each document, and its length, in the batch's order."""
    about: dict[str, list[Any]] = {"source": [], "row": [], "lengths": []}
    for feature in features:
        about["lengths"] += lengths_of(feature)
        for key in ("source", "row"):
            value = feature.get(key)
            about[key] += value if isinstance(value, list) else [value] * len(lengths_of(feature))
    return about
