"""From files to rows: every row is accounted for, and the result depends only on files, options and seed."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sft.config.errors import UserError
from sft.data.pipeline import prepare, sample_conversations
from sft.data.report.report import unaccounted
from sft.data.spec import Dataset

WORDS = st.lists(st.sampled_from(["one", "two", "three", "four", "five", "six"]), min_size=1, max_size=9).map(" ".join)
CHAT = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3).map(
    lambda pairs: {
        "messages": [
            {"role": role, "content": text}
            for pair in pairs
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    }
)
BROKEN = st.sampled_from(["no json", '{"messages": 7}', '{"messages": [{"role": "user", "content": "hi"}]}', "null"])
UNLABELLED = st.just({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "unlabelled b"}]})
MIXED = st.lists(st.one_of(CHAT, CHAT, CHAT, BROKEN, UNLABELLED), max_size=25)
GOOD = [
    {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": f"{word} again"}]}
    for word in ("red", "green", "blue")
]
ROWS = MIXED.flatmap(lambda rows: st.permutations([*rows, *GOOD]))


def tuples(rows) -> list[tuple]:
    """Every document of the rows as a tuple of its tokens, packs taken apart."""
    found = []
    for row in rows:
        start = 0
        for length in row["lengths"]:
            found.append(tuple(row["input_ids"][start : start + length]))
            start += length
    return found


@st.composite
def configs(draw):
    """Files of rows, and options that a run may have."""
    count = draw(st.integers(1, 3))
    files = {f"s{index}": draw(ROWS) for index in range(count)}
    options = {
        "max_length": draw(st.sampled_from([12, 30, 2048])),
        "on_long": draw(st.sampled_from(["drop", "truncate"])),
        "packing": draw(st.booleans()),
        "eval_packing": draw(st.booleans()),
        "eval_fraction": draw(st.sampled_from([0, 0.1, 0.5])),
        "size": draw(st.sampled_from([None, 3, 40])),
        "shuffle": draw(st.booleans()),
    }
    weights = {name: draw(st.sampled_from([None, 0.5, 2.0])) for name in files}
    return files, weights, options, draw(st.booleans()), draw(st.integers(0, 3))


@given(configs())
@hypothesis_settings(max_examples=60, deadline=None)
def test_every_row_is_accounted_for(word_encoder, drawn):
    files, weights, options, expand, seed = drawn
    with tempfile.TemporaryDirectory() as folder:
        sources = {}
        for name, rows in files.items():
            path = Path(folder, f"{name}.jsonl")
            path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
            sources[name] = {"path": str(path), "weight": weights[name], "format": "messages"}
        dataset = Dataset(sources=sources, max_dropped=1, cache=False, check_rows=0, **options)
        try:
            prepared = prepare(dataset, word_encoder(expand), seed=seed, cache_root=Path(folder, "cache"))
        except UserError as error:
            assert "rows remains" in str(error)
            return
        check_report(prepared.report, files, options)
        check_rows(prepared, files, word_encoder(expand), options)


def check_report(report: dict, files: dict, options: dict) -> None:
    """The report's figures add up, and name every dropped row."""
    for name, source in report["sources"].items():
        assert source["read"] == len(files[name])
        assert unaccounted(source) == (0, 0)
        assert (
            source["used"]["rows"] - source["used"]["repeated"] + source["used"]["left_out"] == source["train"]["rows"]
        )
        for reason, count in source["dropped"].items():
            (rows,) = source["dropped_rows"][reason].values()
            assert (
                1 <= sum(int(part.split("-")[-1]) - int(part.split("-")[0]) + 1 for part in rows.split(", ")) <= count
            )
    total = sum(source["used"]["rows"] for source in report["sources"].values())
    assert total == report["train"]["documents"] and options["size"] in (None, total)
    assert sum(source["tokens"] for source in report["sources"].values()) == report["train"]["tokens"]
    for source in report["sources"].values():
        assert abs(source["weight"]["got"] - source["weight"]["asked"]) * total < 1 + 1e-3


def check_rows(prepared, files: dict, encoder, options: dict) -> None:
    """Rows are those of their conversations, within max_length, and never both trained and evaluated on."""
    train, evaluation = tuples(prepared.train), [row for part in prepared.eval.values() for row in tuples(part)]
    assert len(train) == prepared.report["train"]["documents"]
    assert not set(train) & set(evaluation)
    for rows, packed in (
        (prepared.train, options["packing"]),
        *((e, options["eval_packing"]) for e in prepared.eval.values()),
    ):
        for row in rows:
            assert len(row["input_ids"]) == len(row["labels"]) == sum(row["lengths"]) <= options["max_length"]
            assert packed or len(row["lengths"]) == 1
            starts = np.cumsum([0, *row["lengths"][:-1]])
            assert all(row["labels"][start] == -100 for start in starts)
            assert all(label in (-100, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
            names, numbers = (row["source"], row["row"]) if packed else ([row["source"]], [row["row"]])
            for document, name, number in zip(tuples([row]), names, numbers, strict=True):
                made = [tuple(each["input_ids"]) for each in encoder.one(files[name][number - 1])["rows"]]
                assert any(whole[: len(document)] == document for whole in made)
                cut = document not in made
                assert not cut or (options["on_long"] == "truncate" and document[-1] == 1)


def test_order_and_selection_depend_only_on_the_seed(word_encoder, settings, write, chat):
    path = write("rows.jsonl", [chat(f"q {i}", f"a {i}") for i in range(60)])
    dataset = settings({"a": {"path": path}}, eval_fraction=0.2, size=30, packing=True, max_length=32)
    one, two, other = (prepare(dataset, word_encoder(), seed=seed) for seed in (5, 5, 6))
    assert list(one.train) == list(two.train) and list(one.eval["a"]) == list(two.eval["a"])
    assert one.fingerprint == two.fingerprint != other.fingerprint
    assert list(one.train) != list(other.train) and tuples(one.eval["a"]) != tuples(other.eval["a"])


def test_several_processes_give_the_same_result_as_one(word_encoder, settings, write, chat):
    rows = [chat(f"q {i}", f"a {i}") if i % 7 else "broken" for i in range(1200)]
    path = write("rows.jsonl", rows)
    made = [
        prepare(settings({"a": {"path": path}}, max_dropped=1, num_proc=number, cache=False), word_encoder(), seed=0)
        for number in (1, 2)
    ]
    assert list(made[0].train) == list(made[1].train)
    assert made[0].report == made[1].report and made[0].report["sources"]["a"]["broken"] == 172


def test_broken_rows_stop_the_run_and_are_all_reported(word_encoder, settings, write, chat):
    good = chat("hi", "hello")
    path = write(
        "bad.jsonl", [good, {"messages": [{"role": "user", "content": "no answer"}]}, {"messages": 7}, "not json"]
    )
    other = write("other.jsonl", [good, "{"])
    with pytest.raises(UserError) as caught:
        prepare(settings({"a": {"path": path}, "b": {"path": other}}), word_encoder(), seed=0)
    text = str(caught.value)
    assert "dataset.sources.a: 3 of 4 rows are broken" in text and "dataset.sources.b: 1 of 2 rows is broken" in text
    assert all(f"bad.jsonl row {number}: " in text for number in (2, 3, 4)) and "other.jsonl row 2: " in text
    assert "dataset.max_dropped=0.75" in text


def test_a_reason_shared_by_many_rows_is_reported_once(word_encoder, settings, write, chat):
    path = write("bad.jsonl", ["{"] * 50 + [chat("q", "unlabelled")])
    with pytest.raises(UserError) as caught:
        prepare(settings({"a": {"path": path}}, max_dropped=0.5), word_encoder(), seed=0)
    assert str(caught.value).splitlines() == [
        "dataset.sources.a: 51 of 51 rows are broken",
        "  bad.jsonl row 1: broken JSON: Expecting property name enclosed in double quotes at character 2 (cut off?)",
        "  and 49 more for this reason: bad.jsonl row 2-50",
        "  bad.jsonl row 51: no mark: in message 1",
        "  dataset.max_dropped=0.5 allows 25",
        "  -> fix the file, or convert its rows to conversations with your own function (convert)",
    ]


def test_a_long_list_of_reasons_is_truncated_and_counted(word_encoder, settings, write, chat, monkeypatch):
    monkeypatch.setattr("sft.data.report.dropped.LINES", 2)
    rows = [*["{"] * 4, chat("q", "unlabelled"), {"messages": []}, {"messages": 1}, chat("q", "a")]
    with pytest.raises(UserError) as caught:
        prepare(settings({"a": {"path": write("bad.jsonl", rows)}}), word_encoder(), seed=0)
    assert str(caught.value).splitlines()[2:] == [
        "  and 3 more for this reason: bad.jsonl row 2-4",
        "  and 3 more",
        "  dataset.max_dropped=0 allows none",
        "  -> fix or remove them, or drop them with dataset.max_dropped=0.875",
    ]


def test_if_all_rows_are_too_long_lengths_and_key_are_reported(word_encoder, settings, write, chat):
    rows = [chat("q", "word " * count) for count in (40, 60, 90)]
    with pytest.raises(UserError) as caught:
        prepare(settings({"a": {"path": write("long.jsonl", rows)}}, max_length=32), word_encoder(), seed=0)
    assert str(caught.value).splitlines() == [
        "dataset.sources.a: none of its 3 rows remains: longer than max_length=32 (they have 45 to 95 tokens, median 65)",
        "  -> dataset.max_length=95 keeps all of them; dataset.on_long=truncate cuts after an answer that fits",
    ]


def test_max_dropped_allows_a_share_and_warns(word_encoder, settings, write, chat, caplog):
    path = write("rows.jsonl", [*(chat(f"q {i}", "a") for i in range(9)), "broken"])
    prepared = prepare(settings({"a": {"path": path}}, max_dropped=0.1), word_encoder(), seed=0)
    assert len(prepared.train) == 9
    assert "rows.jsonl row 10" in caplog.text


def test_rows_over_max_length_do_not_count_as_broken(word_encoder, settings, write, chat):
    path = write("rows.jsonl", [chat("q", "a"), chat("q", "word " * 50)])
    source = prepare(settings({"a": {"path": path}}, max_length=10), word_encoder(), seed=0).report["sources"]["a"]
    assert source["dropped"] == {"longer than max_length=10": 1}
    assert source["dropped_rows"] == {"longer than max_length=10": {"rows.jsonl": "2"}}
    assert (source["too_long"], source["broken"]) == (1, 0)


def test_on_long_error_names_the_rows_and_the_length_they_need(word_encoder, settings, write, chat):
    path = write("rows.jsonl", [chat("q", "word " * 50), chat("q", "a"), chat("q", "word " * 20)])
    with pytest.raises(UserError, match=r"2 rows are longer than max_length=10: rows.jsonl row 1, 3") as caught:
        prepare(settings({"a": {"path": path}}, max_length=10, on_long="error"), word_encoder(), seed=0)
    assert "dataset.max_length=55" in str(caught.value)


def test_truncation_ends_after_a_complete_answer_or_the_row_is_dropped(word_encoder, settings, write, chat):
    path = write("rows.jsonl", [chat("q", "a b", "more", "word " * 50), chat("q", "word " * 50)])
    prepared = prepare(settings({"a": {"path": path}}, max_length=12, on_long="truncate"), word_encoder(), seed=0)
    (row,) = prepared.train
    assert row["input_ids"] == word_encoder().one(chat("q", "a b"))["rows"][0]["input_ids"]
    source = prepared.report["sources"]["a"]
    assert source["truncated_rows"] == {"rows.jsonl": "1"}
    assert source["dropped_rows"] == {"no whole answer within max_length=12": {"rows.jsonl": "2"}}


def test_a_source_without_remaining_rows_is_refused(word_encoder, settings, write, chat):
    path = write("rows.jsonl", [chat("q", "word " * 50)])
    with pytest.raises(UserError, match="none of its 1 rows remains: longer than max_length=10"):
        prepare(settings({"a": {"path": path}}, max_length=10), word_encoder(), seed=0)


def test_a_source_without_trained_tokens_is_refused(word_encoder, settings, write):
    path = write("rows.jsonl", [{"text": ""}, {"text": "word"}])

    class Untrained(word_encoder):
        def one(self, conversation):
            return {"rows": [{"input_ids": [5, 6], "labels": [5, -100]}], "problem": None}

    with pytest.raises(UserError, match="but no token to train on"):
        prepare(settings({"a": {"path": path}}, max_dropped=1), Untrained(), seed=0)


def test_evaluation_sources_are_kept_apart_by_name_and_out_of_training(word_encoder, settings, write, chat):
    train = write("train.jsonl", [chat(f"q {i}", "a") for i in range(10)])
    held = {
        name: {"path": write(f"{name}.jsonl", [chat(f"q {i}", "a") for i in part])}
        for name, part in (("known", range(8, 12)), ("unseen", range(20, 23)))
    }
    prepared = prepare(settings({"t": {"path": train}}, eval_sources=held, eval_fraction=0.5), word_encoder(), seed=0)
    assert {name: len(rows) for name, rows in prepared.eval.items()} == {"known": 4, "unseen": 3}
    assert len(prepared.train) == 8
    source = prepared.report["sources"]["t"]
    assert source["dropped_rows"] == {"in the evaluation too": {"train.jsonl": "9-10"}}
    assert prepared.report["eval_sources"]["known"]["eval"]["rows"] == 4


def test_equal_rows_of_two_sources_are_not_split_between_training_and_evaluation(word_encoder, settings, write, chat):
    one = write("one.jsonl", [chat(f"q {i}", "a") for i in range(40)])
    two = write("two.jsonl", [chat(f"q {i}", "a") for i in range(20, 60)])
    prepared = prepare(settings({"a": {"path": one}, "b": {"path": two}}, eval_fraction=0.25), word_encoder(), seed=3)
    evaluation = {row for part in prepared.eval.values() for row in tuples(part)}
    assert not evaluation & set(tuples(prepared.train))
    assert [unaccounted(source) for source in prepared.report["sources"].values()] == [(0, 0), (0, 0)]


def test_expanded_turns_of_one_conversation_stay_on_one_side(word_encoder, settings, write, chat):
    path = write("rows.jsonl", [chat(f"q {i}", "a", "more", "b") for i in range(10)])
    prepared = prepare(settings({"a": {"path": path}}, eval_fraction=0.3), word_encoder(expand=True), seed=0)
    sides = [Counter(row["row"] for row in rows) for rows in (prepared.train, prepared.eval["a"])]
    assert set(sides[0].values()) == set(sides[1].values()) == {2} and not set(sides[0]) & set(sides[1])
    source = prepared.report["sources"]["a"]
    assert (source["read"], source["rows"], source["eval"]["rows"]) == (10, 20, 6)


def test_fully_masked_rows_are_reported_and_not_broken(word_encoder, settings, write, chat):
    path = write("rows.jsonl", [chat("q", "a"), chat("q", "unmatched a")])
    prepared = prepare(settings({"a": {"path": path}}), word_encoder(), seed=0)
    source = prepared.report["sources"]["a"]
    assert len(prepared.train) == 1 and unaccounted(source) == (0, 0)
    assert (source["broken"], source["skipped"]) == (0, 1)
    assert source["dropped_rows"] == {"no match, masked whole": {"rows.jsonl": "2"}}


def test_a_text_column_is_rendered_from_messages(word_encoder, settings, write, chat):
    path = write("rows.jsonl", [chat("q", "a b")])
    encoder = word_encoder()
    prepare(settings({"a": {"path": path}}, use_text_column=True), encoder, seed=0)
    assert encoder.encoded == [{"text": "q / a b"}]


def test_the_check_gets_rows_of_every_source_once(word_encoder, settings, write, chat):
    paths = {
        name: {"path": write(name, [chat(f"{name} {i}", "a") for i in range(30)])} for name in ("a.jsonl", "b.jsonl")
    }
    encoder = word_encoder()
    prepare(settings(paths, check_rows=8), encoder, seed=0)
    first_words = Counter(c["messages"][0]["content"].split()[0] for c in encoder.checked)
    assert first_words == {"a.jsonl": 8, "b.jsonl": 8}
    with pytest.raises(UserError, match="the two masks differ"):
        prepare(settings(paths, check_rows=9), word_encoder(disagree=True), seed=0)


def test_a_sample_has_a_conversation_of_every_shape(settings, write, chat):
    rows = [chat(f"q {i}", "a") for i in range(100)] + [
        {**chat("q", "a"), "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}
    ]
    dataset = settings({"a": {"path": write("rows.jsonl", rows)}, "b": {"path": write("text.jsonl", [{"text": "x"}])}})
    for _ in range(2):  # the second time from the cache
        conversations, formats = sample_conversations(dataset, 5)
        assert sum("tools" in conversation for conversation in conversations) == 1
        assert {"text": "x"} in conversations and len(conversations) == 6
        assert formats == ["messages", "text"]


def test_rows_pickle_select_and_become_a_dataset(word_encoder, settings, write, chat):
    path = write("rows.jsonl", [chat(f"q {i}", "a " * (i + 1)) for i in range(9)])
    for packing in (False, True):
        rows = prepare(settings({"a": {"path": path}}, packing=packing, max_length=24), word_encoder(), seed=0).train
        assert list(pickle.loads(pickle.dumps(rows))) == list(rows)
        assert len(pickle.dumps(rows)) < 5000
        assert list(rows.select([2, 0])) == [rows[2], rows[0]] and rows[-1] == rows[len(rows) - 1]
        assert rows.lengths.tolist() == [len(row["input_ids"]) for row in rows]
        assert rows.trained.tolist() == [sum(label != -100 for label in row["labels"]) for row in rows]
        table = rows.to_dataset()
        assert table["input_ids"][:] == [row["input_ids"] for row in rows]
        assert table["position_ids"][0] == [place for length in rows[0]["lengths"] for place in range(length)]
        with pytest.raises(IndexError):
            rows[len(rows)]


def test_rows_without_a_cache_outlive_their_files(word_encoder, settings, write, chat, tmp_path):
    path = write("rows.jsonl", [chat("q", "a b")])
    rows = prepare(settings({"a": {"path": path}}, cache=False), word_encoder(), seed=0).train
    assert pickle.loads(pickle.dumps(rows))[0] == rows[0]
    assert not (tmp_path / "sft-cache").exists() or not os.listdir(tmp_path / "sft-cache")
