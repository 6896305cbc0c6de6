"""The report names every dropped row, and its table is a correct summary."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sft.data.pipeline import prepare
from sft.data.report.account import account, summary
from sft.data.report.report import named, ranges, unaccounted, with_steps
from sft.data.report.table import show_report


@given(st.lists(st.integers(1, 200), max_size=60))
def test_row_ranges_expand_to_exactly_the_rows(numbers):
    parsed = set()
    for part in filter(None, ranges(numbers).split(", ")):
        first, last = (part.split("-") * 2)[:2]
        parsed |= set(range(int(first), int(last) + 1))
    assert parsed == set(numbers)


def test_ranges_as_a_reader_writes_them():
    assert ranges([12, 9, 3, 8, 7]) == "3, 7-9, 12" and ranges([]) == ""
    assert named([("a", 1), ("b", 4), ("a", 2)]) == {"a": "1-2", "b": "4"}


@pytest.fixture
def report(word_encoder, settings, write, chat):
    rows = [chat(f"q {i}", "a b") for i in range(20)]
    rows += ["broken", chat("q", "unlabelled x"), chat("q", "a", "more", "word " * 60), chat("q", "word " * 60)]
    sources = {
        "main": {"path": write("main.jsonl", rows), "weight": 3},
        "other": {"path": write("other.jsonl", [chat(f"r {i}", "c") for i in range(40)]), "weight": 1},
    }
    options = {"max_dropped": 0.2, "max_length": 32, "on_long": "truncate", "packing": True, "eval_fraction": 0.1}
    return prepare(settings(sources, **options), word_encoder(), seed=0).report


def test_the_report_accounts_for_every_row(report):
    main = report["sources"]["main"]
    assert {key: main[key] for key in ("read", "converted", "broken", "skipped", "rows", "truncated", "too_long")} == {
        "read": 24, "converted": 22, "broken": 2, "skipped": 0, "rows": 22, "truncated": 1, "too_long": 1
    }  # fmt: skip
    assert main["dropped_rows"]["no mark"] == {"main.jsonl": "22"}
    assert main["dropped_rows"]["no whole answer within max_length=32"] == {"main.jsonl": "24"}
    assert main["truncated_rows"] == {"main.jsonl": "23"}
    assert main["reasons"][-1] == "main.jsonl row 22: no mark: in message 1"
    assert (main["train"]["rows"], main["eval"]["rows"]) == (19, 2)
    assert main["weight"] == {"stated": 3, "asked": 0.75, "got": 0.76, "got_tokens": main["weight"]["got_tokens"]}
    assert report["sources"]["other"]["used"] == {
        "rows": 6, "tokens": 42, "trained_tokens": 12, "repeated": 0, "left_out": 30
    }  # fmt: skip
    assert [unaccounted(source) for source in report["sources"].values()] == [(0, 0), (0, 0)]
    assert json.loads(json.dumps(report)) == report


def test_steps_follow_from_the_packs(report):
    assert report["train"]["steps_per_epoch"] is None
    rows = report["train"]["rows"]
    assert rows < report["train"]["documents"] == 25
    assert with_steps(report, 4)["train"]["steps_per_epoch"] == -(-rows // 4)


def test_the_table_and_the_notes_below_it(report):
    text = io.StringIO()
    show_report(with_steps(report, 2), Console(file=text, width=80, soft_wrap=True))
    said = text.getvalue()
    assert "76.0% of 75.0%" in said and "…" not in said and "packs" in said and "steps per epoch" in said
    assert "\n".join(account(report)) in said
    assert (
        "train: " in said
        and "limited by main, which has no more rows for its weight (dataset.size=N repeats rows)" in said
    )


def test_the_notes_list_what_was_read_ignored_and_changed(report):
    report["sources"]["main"]["notes"] = {
        "unread_message_keys": {"sparkle": {"count": 3, "first": "main.jsonl row 1"}},
        "changed_contents": {"answers, trimmed": {"count": 2, "first": "main.jsonl row 5"}},
    }
    assert account(report) == [
        "main",
        "  read: 22 of 24 rows, as messages",
        "  left out: 1 dropped: broken JSON (main.jsonl row 21)",
        "  left out: 1 dropped: no mark (main.jsonl row 22)",
        "  left out: 1 dropped: no whole answer within max_length=32 (main.jsonl row 24)",
        "  not read: message keys: sparkle (3, first in main.jsonl row 1)",
        "  changed: 1 cut at max_length=32 (main.jsonl row 23)",
        "  changed: contents changed by the chat template (template=chatml keeps them): answers, trimmed (2, first in "
        "main.jsonl row 5)",
        "other",
        "  read: 40 of 40 rows, as messages",
        "  left out: nothing",
        "  not read: nothing",
        "  changed: nothing",
    ]
    assert "main: 1 cut at max_length=32 (main.jsonl row 23)" in summary(report)


def test_an_unaccounted_row_would_be_detected(report):
    main = report["sources"]["main"]
    assert unaccounted({**main, "read": 25}) == (1, 0)
    assert unaccounted({**main, "rows": 23}) == (0, 1)
    assert unaccounted({**main, "dropped": {}}) != (0, 0)
