"""Batches: padding is never trained, positions restart, and no target crosses a document boundary."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sft.data.batches.collate import FlatCollator, PaddedCollator, positions, shift_labels, split_batch

PAD = 999


@st.composite
def feature(draw, most: int = 3):
    """A row of one document or, unless most is 1, of several; labels are ids or -100, also at a document's start."""
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=most))
    ids = draw(st.lists(st.integers(1, 99), min_size=sum(lengths), max_size=sum(lengths)))
    labels = [token if draw(st.booleans()) else -100 for token in ids]
    return {
        "input_ids": ids,
        "labels": labels,
        "source": ["a"] * len(lengths),
        "row": [1] * len(lengths),
        "lengths": lengths,
    }


def targets(features) -> list[tuple[int, int]]:
    """(token, the trained token that follows it in its document), in order."""
    found = []
    for each in features:
        start = 0
        for length in each["lengths"]:
            ids, labels = each["input_ids"][start : start + length], each["labels"][start : start + length]
            found += [(ids[i], labels[i + 1]) for i in range(length - 1) if labels[i + 1] != -100]
            start += length
    return found


def of_batch(batch) -> list[tuple[int, int]]:
    here = batch["shift_labels"] != -100
    return list(zip(batch["input_ids"][here].tolist(), batch["shift_labels"][here].tolist(), strict=True))


@given(st.lists(feature(), min_size=1, max_size=4))
def test_flat_batches_have_every_target_once_and_none_across_a_boundary(features):
    batch = FlatCollator()(features)
    assert of_batch(batch) == targets(features)
    assert batch["input_ids"].tolist() == [[token for each in features for token in each["input_ids"]]]
    lengths = [length for each in features for length in each["lengths"]]
    assert batch["position_ids"].tolist() == [[place for length in lengths for place in range(length)]]
    assert batch["lengths"] == lengths
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, *np.cumsum(lengths)]
    assert batch["max_length_q"] == batch["max_length_k"] == max(lengths)
    assert "attention_mask" not in batch


@given(
    st.lists(feature(most=1), min_size=1, max_size=4), st.sampled_from(["left", "right"]), st.sampled_from([None, 8])
)
def test_padded_batches_of_single_documents(features, side, multiple):
    batch = PaddedCollator(PAD, side, multiple)(features)
    assert of_batch(batch) == targets(features)
    mask = batch["attention_mask"].bool()
    assert batch["input_ids"][mask].tolist() == [token for each in features for token in each["input_ids"]]
    assert (batch["input_ids"][~mask] == PAD).all() and (batch["labels"][~mask] == -100).all()
    assert mask.sum(1).tolist() == [len(each["input_ids"]) for each in features]
    assert not multiple or mask.shape[1] % multiple == 0
    edge = mask[:, -1] if side == "left" else mask[:, 0]
    assert edge.all()


@given(st.lists(feature(), min_size=1, max_size=4).filter(lambda rows: any(len(row["lengths"]) > 1 for row in rows)))
def test_padded_packs_have_no_mask_and_padding_is_a_document_of_its_own(features):
    batch = PaddedCollator(PAD, "left")(features)
    assert of_batch(batch) == targets(features) and "attention_mask" not in batch
    for index, each in enumerate(features):
        width = batch["input_ids"].shape[1] - len(each["input_ids"])
        places = [place for length in [*each["lengths"], *([width] if width else [])] for place in range(length)]
        assert batch["position_ids"][index].tolist() == places


@pytest.mark.parametrize("collator", [FlatCollator(), PaddedCollator(PAD), PaddedCollator(PAD, "left")])
def test_the_loss_of_the_next_tokens_is_the_same_as_with_labels_shifted_by_the_model(collator):
    rows = [
        {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4], "source": "a", "row": 4},
        {"input_ids": [5, 6], "labels": [-100, 6], "source": "b", "row": 1},
    ]
    batch, about = split_batch(collator(rows))
    assert about == {"source": ["a", "b"], "row": [4, 1], "lengths": [4, 2]}
    assert all(batch[key].dtype == torch.int64 for key in ("input_ids", "labels", "shift_labels"))
    logits = torch.randn(*batch["input_ids"].shape, 1000, generator=torch.Generator().manual_seed(0))
    whole = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    ours = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["shift_labels"].flatten())
    torch.testing.assert_close(ours, whole)


def test_single_row_helpers():
    assert positions([2, 3, 1]).tolist() == [0, 1, 0, 1, 2, 0]
    assert shift_labels(np.array([-100, 4, -100, 5, 6]), [2, 3]).tolist() == [4, -100, 5, 6, -100]


def test_collators_can_be_pickled_to_workers():
    assert pickle.loads(pickle.dumps(PaddedCollator(3, "left", 8))) == PaddedCollator(3, "left", 8)
    assert pickle.loads(pickle.dumps(FlatCollator())) == FlatCollator()
