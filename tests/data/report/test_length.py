"""Truncation keeps complete answers, and length statistics are correct."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.data.report.length import cut_at, plot_lengths, statistics


@given(st.lists(st.booleans(), min_size=3, max_size=40), st.integers(1, 39))
def test_truncation_ends_after_the_last_span_that_fits(trained, max_length):
    if max_length >= len(trained):
        return
    cut = cut_at(np.array(trained), max_length)
    if all(trained[1:]):
        assert cut == (max_length if max_length > 1 else 0)
        return
    ends = [i + 1 for i in range(1, len(trained) - 1) if trained[i] and not trained[i + 1]]
    assert cut == max((end for end in ends if end <= max_length), default=0)


@pytest.mark.parametrize(
    ("trained", "max_length", "cut"),
    [
        ("..xx..xx.", 8, 8),  # only what follows the last answer is cut off
        ("..xx..xx.", 7, 4),  # the second answer does not fit whole
        ("..xx..xx.", 3, 0),  # nor does the first
        ("....xxxxx", 8, 0),
        (".xxxxxxxx", 5, 5),  # text trained whole, after BOS or without
        ("xxxxxxxxx", 5, 5),
    ],
)
def test_truncation_examples(trained, max_length, cut):
    assert cut_at(np.array([sign == "x" for sign in trained]), max_length) == cut


@given(st.lists(st.integers(1, 5000), max_size=60))
def test_statistics_match_the_lengths(lengths):
    found = statistics(np.array(lengths, np.int64))
    histogram = found["histogram"]
    assert sum(histogram["counts"]) == len(lengths)
    if lengths:
        assert (found["min"], found["max"]) == (min(lengths), max(lengths))
        assert found["min"] <= found["median"] <= found["p95"] <= found["max"]
        assert histogram["edges"][0] <= min(lengths) and max(lengths) < histogram["edges"][-1]


def test_the_plot_needs_only_a_report(tmp_path):
    length = statistics(np.array([3, 50, 700]))
    empty = statistics(np.array([], np.int64))
    report = {"max_length": 512, "sources": {"a": {"length": length}}, "eval_sources": {"b": {"length": empty}}}
    picture = plot_lengths(report, tmp_path / "lengths.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
