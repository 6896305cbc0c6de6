"""A batch split between documents: every document in exactly one part, after the shared prefix."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sft.data.batches.collate import FlatCollator
from sft.data.batches.parts import MAX_IMBALANCE, split_documents
from sft.data.batches.prefix import SharedPrefixCollator

X = -100


def rows(lengths, start=()):
    """A row of other tokens for each length, behind `start`; the second half trained."""
    found, token = [], 10
    for length in lengths:
        ids = [*start, *range(token, token + length)]
        token += length
        half = len(start) + length // 2
        found.append({"input_ids": ids, "labels": [X] * half + ids[half:], "source": "a", "row": token})
    return found


def lengths_of(batch):
    return batch["cu_seq_lens_q"].diff().tolist()


def stretches(batch):
    """Each document's (tokens, targets, places, tokens that it sees)."""
    borders, seen = batch["cu_seq_lens_q"].tolist(), batch["cu_seq_lens_k"].diff().tolist()
    columns = [batch[key][0].tolist() for key in ("input_ids", "labels", "shift_labels", "position_ids")]
    cuts = zip(borders, borders[1:], seen, strict=False)
    return [(*(tuple(column[start:end]) for column in columns), keys) for start, end, keys in cuts]


def test_parts_keep_the_order_of_documents_and_balance_the_work():
    batch = FlatCollator()(rows([7, 3, 4, 6]))
    first, second = split_documents(batch, 2, lengths_of(batch))
    assert (lengths_of(first), lengths_of(second)) == ([7, 3], [4, 6])
    assert (first["max_length_q"], second["max_length_k"]) == (7, 6)
    assert first["input_ids"].tolist() == [[10, 11, 12, 13, 14, 15, 16, 17, 18, 19]]
    assert first["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2]]
    assert first["shift_labels"].tolist() == [[X, X, 13, 14, 15, 16, X, 18, 19, X]]
    assert first["cu_seq_lens_q"].dtype == torch.int32


def test_every_part_has_the_shared_prefix():
    batch = SharedPrefixCollator()(rows([5, 5, 6, 6], start=range(1, 10)))
    assert lengths_of(batch) == [9, 5, 5, 6, 6]
    for part in split_documents(batch, 2, lengths_of(batch)):
        assert lengths_of(part) == [9, 6, 5] or lengths_of(part) == [9, 5, 6]
        assert part["cu_seq_lens_k"].diff().tolist() == [9, *(9 + length for length in lengths_of(part)[1:])]
        assert part["input_ids"][0, :9].tolist() == list(range(1, 10))


def test_parts_are_balanced_by_cost_and_not_by_tokens():
    batch = FlatCollator()(rows([2, 2, 8]))
    first, second = split_documents(batch, 2, [6.0, 1.0, 5.0])
    assert (lengths_of(first), lengths_of(second)) == ([2], [2, 8])


def test_too_few_or_too_uneven_documents_are_not_split():
    for lengths in ([9], [9, 1], [30, 3, 3, 3]):
        batch = FlatCollator()(rows(lengths))
        (whole,) = split_documents(batch, 2, lengths_of(batch))
        assert whole.keys() == batch.keys() and torch.equal(whole["input_ids"], batch["input_ids"])


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=9),
    st.integers(0, 12),
    st.integers(2, 4),
)
def test_every_document_is_unchanged_in_exactly_one_part(lengths, beginning, count):
    batch = SharedPrefixCollator()(rows([length + 1 for length in lengths], start=range(1, 1 + beginning)))
    costs = [float(length) for length in lengths_of(batch)]
    parts = split_documents(batch, count, costs)
    shared = int(batch["cu_seq_lens_q"][-1] != batch["cu_seq_lens_k"][-1])
    before, *_ = stretches(batch)
    found = [stretch for part in parts for stretch in stretches(part)[shared:]]
    assert sorted(found) == sorted(stretches(batch)[shared:])
    assert all(stretches(part)[0] == before for part in parts if shared)
    if len(parts) > 1:
        loads = [sum(lengths_of(part)) for part in parts]
        assert len(parts) == count and max(loads) * count <= MAX_IMBALANCE * sum(loads)
