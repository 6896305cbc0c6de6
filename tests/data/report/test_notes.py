"""Ignored contents are counted once per row, with any converter and also for rows from the cache."""

from __future__ import annotations

import pytest

from sft.data.pipeline import prepare
from sft.data.report.account import summary
from sft.data.report.notes import MOST, OTHERS, Notes, collected, lines, note


def test_notes_are_only_collected_within_the_block():
    note("unread_columns", "before")
    with collected() as outer:
        note("unread_columns", "a")
        with collected() as inner:
            note("unread_columns", "b")
        note("unread_columns", "c")
    assert outer == [("unread_columns", "a"), ("unread_columns", "c")] and inner == [("unread_columns", "b")]


def test_details_beyond_the_limit_are_counted_together():
    notes = Notes()
    for number in range(MOST + 5):
        notes.add("unread_columns", f"key{number}", number)
    notes.add("unread_columns", "key0", 7)
    counts = notes.counts["unread_columns"]
    assert len(counts) == MOST + 1 and counts[OTHERS] == [5, MOST] and counts["key0"] == [2, 0]


def test_each_kind_is_one_line():
    known = {"unread_message_keys": {"sparkle": {"count": 1200, "first": "a.jsonl row 1"}}}
    assert lines(known) == ["message keys not read: sparkle (1,200, first in a.jsonl row 1)"]
    assert lines({"other_things": {"x": {"count": 1, "first": "a row 2"}}}) == ["other things: x (1, first in a row 2)"]


@pytest.mark.parametrize("processes", [1, 2])
def test_every_row_is_counted_in_every_process_and_from_the_cache(word_encoder, settings, write, chat, processes):
    rows = [{**chat(f"q {i}", "a"), "id": i + 1, **({"rare": "x"} if i == 601 else {})} for i in range(700)]
    dataset = settings({"main": {"path": write("main.jsonl", [*rows, "broken"])}}, num_proc=processes, max_dropped=0.1)
    expected = {
        "unread_columns": {
            "id": {"count": 700, "first": "main.jsonl row 1"},
            "rare": {"count": 1, "first": "main.jsonl row 602"},
        }
    }
    for cached in (False, True):
        report = prepare(dataset, word_encoder(), seed=0).report
        assert report["sources"]["main"]["cached"] is cached
        assert report["sources"]["main"]["notes"] == expected
    line = "main: columns not read: id (700, first in main.jsonl row 1), rare (1, first in main.jsonl row 602)"
    assert line in summary(report)


def test_rows_of_a_users_own_function_are_counted(word_encoder, settings, write, chat):
    def convert(row):
        return {**chat("q", row["a"]), "kept": 1} if row["a"] else None

    sources = {"main": {"path": write("main.jsonl", [{"a": ""}, {"a": "x"}]), "convert": convert}}
    report = prepare(settings(sources), word_encoder(), seed=0).report
    assert report["sources"]["main"]["notes"] == {"unread_columns": {"kept": {"count": 1, "first": "main.jsonl row 2"}}}
