"""The shared prefix of a batch: exact to the token, without trained tokens, and without losing targets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sft.data.batches.collate import FlatCollator
from sft.data.batches.prefix import MIN_SHARED_TOKENS, SharedPrefixCollator, common_prefix_length

X = -100


def document(ids, labels=None):
    return np.array(ids), np.array(labels if labels is not None else [X] * len(ids))


def test_the_shared_prefix_ends_where_documents_differ_or_are_trained_or_end():
    assert common_prefix_length([document([1, 2, 3, 4]), document([1, 2, 9, 4])]) == 2
    assert common_prefix_length([document([1, 2, 3, 4]), document([1, 2, 3, 4])]) == 3  # one token is left of each
    assert common_prefix_length([document([1, 2, 3, 4]), document([1, 2])]) == 1
    # token 2 is trained, so the position before it, which predicts it, is each document's own
    assert common_prefix_length([document([1, 2, 3, 4], [X, X, 3, 4]), document([1, 2, 3, 5])]) == 1
    assert common_prefix_length([document([1, 2, 3, 4], [1, X, X, 4]), document([1, 2, 3, 5])]) == 2
    assert common_prefix_length([document([1, 2, 3])]) == 0
    assert common_prefix_length([]) == 0


@st.composite
def rows(draw):
    """Rows of one or several documents over few tokens, all behind the same beginning; trained at the end."""
    start = draw(st.lists(st.integers(1, 3), min_size=0, max_size=14))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        ids, labels, lengths = [], [], []
        for _ in range(draw(st.integers(1, 3))):
            own = start + draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
            trained = draw(st.integers(0, len(own)))
            ids, lengths = ids + own, [*lengths, len(own)]
            labels += [X] * (len(own) - trained) + own[len(own) - trained :]
        found.append({"input_ids": ids, "labels": labels, "lengths": lengths, "source": "a", "row": 1})
    return found


def predictions(batch):
    """(tokens that the position sees, the token it must predict) of each trained position."""
    ids, targets = batch["input_ids"][0].tolist(), batch["shift_labels"][0].tolist()
    borders, seen = batch["cu_seq_lens_q"].tolist(), batch["cu_seq_lens_k"].diff().tolist()
    found = []
    for start, end, keys in zip(borders, borders[1:], seen, strict=False):
        before = ids[: keys - (end - start)]
        assert batch["position_ids"][0, start:end].tolist() == list(range(len(before), keys))
        found += [(*before, *ids[start : at + 1], "->", targets[at]) for at in range(start, end) if targets[at] != X]
    return sorted(found, key=str)


@given(rows())
def test_every_trained_token_is_predicted_once_from_its_preceding_tokens(features):
    plain, shared = FlatCollator()(features), SharedPrefixCollator()(features)
    assert predictions(shared) == predictions(plain)
    saved = plain["input_ids"].numel() - shared["input_ids"].numel()
    count = len(shared["lengths"])
    assert shared["lengths"] == plain["lengths"] and shared["row"] == plain["row"]
    if shared["cu_seq_lens_q"][-1] == shared["cu_seq_lens_k"][-1]:
        assert saved == 0
    else:
        beginning = int(shared["cu_seq_lens_q"][1])
        assert beginning >= MIN_SHARED_TOKENS and saved == (count - 1) * beginning
        assert (shared["shift_labels"][0, :beginning] == X).all()
