"""Public datasets to JSONL: small files of each one's own schema, every row accounted for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.config.errors import UserError
from sft.data.formats import recognise
from sft.data.makers import MAKERS, Counts, conversations, prepare
from sft.data.makers.diffs import changes_of
from sft.data.readers import read_source
from sft.data.source import Source


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def made(folder: Path, source: str, rows: list[Any], **options: Any) -> tuple[Counts, list[dict[str, Any]]]:
    counts = prepare(source, write(folder / "in.jsonl", rows), str(folder / "out.jsonl"), **options)
    assert counts.read == counts.used + sum(counts.left_out.values())
    written = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert len(written) == counts.written
    return counts, written


def readable(path: Path) -> list[dict[str, Any]]:
    """What training reads of a prepared file; no row of it may fail."""
    source = Source(path=str(path))
    rows = [row for _, row in read_source(source, "local")]
    converter = recognise(source, rows, "where")
    return [converter.to_conversation(row) for row in rows]


def chat(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)]


# Dolly and Alpaca


def test_dolly_rows_become_conversations(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Name it", "context": "", "response": "Blue.", "category": "open_qa"},
        {"instruction": "Sum up", "context": "A text.", "response": "Text.\n", "category": "summarization"},
        {"instruction": "Why?", "context": "", "response": " ", "category": "open_qa"},
    ]
    counts, written = made(tmp_path, "dolly", rows)
    assert written == [
        {"messages": chat("Name it", "Blue."), "source": "dolly", "category": "open_qa"},
        {"messages": chat("Sum up\nA text.", "Text.\n"), "source": "dolly", "category": "summarization"},
    ]
    assert (counts.read, counts.used, counts.left_out) == (3, 2, {"empty answer": 1})
    assert counts.examples == {"empty answer": "in.jsonl row 3"}
    assert readable(tmp_path / "out.jsonl") == [{"messages": row["messages"]} for row in written]


def test_alpaca_and_its_rows_read_directly_are_the_same(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add", "input": "1 and 2", "output": "3", "text": "Below is an instruction ..."},
        {"instruction": "Greet", "input": "", "output": "Hello"},
    ]
    counts, written = made(tmp_path, "alpaca", rows)
    assert [row["messages"] for row in written] == [chat("Add\n1 and 2", "3"), chat("Greet", "Hello")]
    assert readable(tmp_path / "out.jsonl") == readable(tmp_path / "in.jsonl")
    assert counts.left_out == {}


def test_broken_lines_are_counted_with_the_first_place(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('nonsense\n{"instruction": "a", "output": "b"}\n{"instruction": "a"}\nnonsense\n')
    counts = prepare("alpaca", str(path), str(tmp_path / "out.jsonl"))
    assert counts.left_out == {"broken JSON": 2, "missing column": 1}
    assert counts.examples == {"broken JSON": "in.jsonl row 1", "missing column": "in.jsonl row 3"}
    assert str(counts).splitlines() == [
        f"alpaca: 1 records of 1 rows, 4 read -> {tmp_path}/out.jsonl",
        "  left out 2: broken JSON (first: in.jsonl row 1)",
        "  left out 1: missing column (first: in.jsonl row 3)",
    ]


# OASST1


def message(name: str, parent: str | None, rank: Any = None, **more: Any) -> dict[str, Any]:
    """A row of oasst1; a name's first letter says who speaks."""
    return {
        "message_id": name,
        "parent_id": parent,
        "message_tree_id": "tree",
        "text": f"text of {name}",
        "role": {"p": "prompter", "a": "assistant"}[name[0]],
        "lang": "en",
        "rank": rank,
        "deleted": False,
        "review_result": True,
        "tree_state": "ready_for_export",
        "synthetic": False,
        **more,
    }


def spoken(*names: str) -> list[dict[str, str]]:
    return chat(*(f"text of {name}" for name in names))


def test_a_tree_becomes_the_conversation_of_its_best_ranked_replies(tmp_path: Path) -> None:
    rows = [
        message("p1", None),
        message("a1", "p1", 1),
        message("a2", "p1", 0.0),
        message("p2", "a2", 0),
        message("p3", "a2", 1),
        message("a3", "p3"),
        message("p4", "a1"),
        message("a4", "p4", 0),
    ]
    counts, written = made(tmp_path, "oasst1", rows[::-1])
    assert written == [{"messages": spoken("p1", "a2", "p3", "a3"), "source": "oasst1", "message_tree_id": "tree"}]
    assert (counts.used, counts.left_out) == (4, {"beside the best-ranked path": 4})
    assert readable(tmp_path / "out.jsonl") == [{"messages": written[0]["messages"]}]


def test_dropped_messages_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [
        message("p1", None),
        message("a1", "p1", 0, deleted=True),
        message("a2", "p1", 1, review_result=False),
        message("a3", "p1", 2, lang="de"),
        message("a4", "p1", 3, text=" "),
        message("a5", "p1", 4),
        message("a5", "p1", 4),
        message("p6", "a1"),
        message("a6", "p6"),
        message("p7", None),
        message("p8", None, tree_state="aborted_low_grade"),
        {"text": "no message"},
    ]
    counts, written = made(tmp_path, "oasst1", rows)
    assert [row["messages"] for row in written] == [spoken("p1", "a5")]
    assert counts.left_out == {
        "deleted": 1,
        "failed review": 1,
        "not in the language en": 1,
        "empty text": 1,
        "message_id repeated": 1,
        "below a message that was left out": 2,
        "prompt without an answer": 1,
        "tree not ready for export": 1,
        "no message of oasst1 (message_id, role prompter or assistant)": 1,
    }


def test_another_language_can_be_selected(tmp_path: Path) -> None:
    rows = [message("p1", None, lang="de"), message("a1", "p1", lang="de"), message("p2", None)]
    _, written = made(tmp_path, "oasst1", rows, lang="de")
    assert [row["messages"] for row in written] == [spoken("p1", "a1")]


@settings(max_examples=60)
@given(st.data())
def test_any_tree_accounts_for_every_message(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    rows = []
    for index in range(count):
        parent = data.draw(st.none() | st.integers(0, count)) if index else None
        kind = data.draw(st.sampled_from("pa")) if index else "p"
        names = [row["message_id"] for row in rows]
        name = names[parent] if parent is not None and parent < len(names) else None
        rank = data.draw(st.none() | st.integers(0, 3))
        rows.append(message(f"{kind}{index}", name, rank, deleted=data.draw(st.booleans()) and index > 1))
    rows += [message("p98", None), message("a99", "p98")]  # so that something is left to write
    counts, written = made(tmp_path_factory.mktemp("tree"), "oasst1", rows)
    assert counts.used == sum(len(row["messages"]) for row in written)
    for row in written:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2)


# Code repair

DIFF = """diff --git a/pkg/a.py b/pkg/a.py
index 1..2 100644
--- a/pkg/a.py
+++ b/pkg/a.py
@@ -1,4 +1,4 @@ class A:
 def f(x):
-    return x
+    return x + 1
 
 # end
@@ -20 +20,2 @@
-last = 1
+last = 2
+--- not a header
diff --git a/new.py b/new.py
new file mode 100644
--- /dev/null
+++ b/new.py
@@ -0,0 +1 @@
+pass
"""
BENCH = {
    "instance_id": "org__pkg-1",
    "repo": "org/pkg",
    "base_commit": "abc",
    "problem_statement": "f is off by one",
    "patch": DIFF,
    "test_patch": DIFF,
    "hints_text": "",
    "FAIL_TO_PASS": "[]",
}
SYNTH = {
    "source": {"repo": "org/pkg", "base_commit": "abc", "swe_instance_id": "org__pkg-7"},
    "bug": {"problem_statement": '"f is off by one"'},
    "original": {"gold_patch": DIFF, "problem_statement": "another"},
    "task_id": 12,
}


def test_a_diff_yields_its_files_and_the_code_before() -> None:
    first, second = changes_of(DIFF)
    assert (first.path, first.is_new, second.path, second.is_new) == ("pkg/a.py", False, "new.py", True)
    assert first.hunks == [(1, ["def f(x):", "    return x", "", "# end"]), (20, ["last = 1"])]
    assert first.before() == "@ line 1\ndef f(x):\n    return x\n\n# end\n@ line 20\nlast = 1"
    assert changes_of("just words") == []


@given(st.lists(st.text("ab \t-+@", max_size=6), min_size=1, max_size=8), st.integers(0, 7), st.text("ab", max_size=3))
def test_the_reconstructed_code_equals_the_diffs_original(lines: list[str], at: int, new: str) -> None:
    import difflib

    after = [*lines[:at], new, *lines[at + 1 :]]
    diff = "\n".join(difflib.unified_diff(lines, after, "a/x.py", "b/x.py", lineterm="", n=99))
    if diff:
        (change,) = changes_of(diff)
        assert [line for _, shown in change.hunks for line in shown] == lines


def test_swe_synth_becomes_instruction_and_response(tmp_path: Path) -> None:
    counts, written = made(tmp_path, "swe_synth", [SYNTH, BENCH, {**BENCH, "patch": ""}, {**BENCH, "patch": "mend it"}])
    row = {"instruction": "f is off by one", "response": DIFF}
    assert written == [
        {**row, "instance_id": "org__pkg-7", "task_id": 12},
        {**row, "instance_id": "org__pkg-1", "task_id": "org__pkg-1"},
    ]
    assert counts.left_out == {"no patch": 1, "the patch is not a unified diff": 1}
    assert readable(tmp_path / "out.jsonl") == [{"messages": chat("f is off by one", DIFF)}] * 2


def test_one_task_per_file_is_read_with_the_files_number(tmp_path: Path) -> None:
    record = {key: value for key, value in SYNTH.items() if key != "task_id"}
    (tmp_path / "bugs").mkdir()
    for number in (3, 17):
        (tmp_path / "bugs" / f"task_{number:011d}.json").write_text(json.dumps(record, indent=1))
    prepare("swe_synth", str(tmp_path / "bugs"), str(tmp_path / "out.jsonl"))
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["task_id"] for row in written] == [3, 17]


def test_swe_simple_names_files_and_answers_with_the_patch(tmp_path: Path) -> None:
    _, (row,) = made(tmp_path, "swe", [BENCH])
    assert (row["instance_id"], row["task_id"]) == ("org__pkg-1", "org__pkg-1")
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    _, asked, files, _, patch = [turn["content"] for turn in row["messages"]]
    assert asked == "Repository: org/pkg\n\nf is off by one\n\nWhich files does the change belong in?"
    assert files == "- pkg/a.py\n- new.py (new)"
    assert patch == f"```diff\n{DIFF}```"
    assert readable(tmp_path / "out.jsonl") == [{"messages": row["messages"]}]


def test_swe_code_context_shows_the_code_before_the_change(tmp_path: Path) -> None:
    whole = {**BENCH, "files": {"pkg/a.py": "def f(x):\n    return x\n```\n"}}
    _, (row,) = made(tmp_path, "swe", [BENCH], mode="code_context")
    shown = "### pkg/a.py\n```\n@ line 1\ndef f(x):\n    return x\n\n# end\n@ line 20\nlast = 1\n```"
    assert row["messages"][3]["content"] == f"This is the code before the change:\n\n{shown}\n\nWrite the patch."
    for context in ("auto", "file"):
        _, (row,) = made(tmp_path, "swe", [whole], mode="code_context", context=context)
        assert "### pkg/a.py\n````\ndef f(x):\n    return x\n```\n````" in row["messages"][3]["content"]
    _, (row,) = made(tmp_path, "swe", [whole], mode="code_context", context="diff")
    assert shown in row["messages"][3]["content"]
    counts, _ = made(tmp_path, "swe", [whole, BENCH], mode="code_context", context="file")
    assert counts.left_out == {"no file contents in the record": 1}


# The command


def test_all_makes_one_file_of_three(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    write(folder / "dolly.jsonl", [{"instruction": "a", "response": "b"}])
    write(folder / "alpaca_data.json", [{"instruction": "c", "output": "d"}, {"instruction": "e", "output": ""}])
    (folder / "oasst1.jsonl.gz").write_bytes(
        gzip.compress("\n".join(json.dumps(row) for row in (message("p1", None), message("a1", "p1"))).encode())
    )
    counts = prepare("all", str(folder), str(tmp_path / "all.jsonl.gz"))
    rows = [json.loads(line) for line in gzip.decompress((tmp_path / "all.jsonl.gz").read_bytes()).splitlines()]
    assert [row["source"] for row in rows] == ["dolly", "oasst1", "alpaca"]
    assert (counts.read, counts.used, counts.written) == (5, 4, 3)
    assert counts.left_out == {"alpaca: empty answer": 1}
    assert len(readable(tmp_path / "all.jsonl.gz")) == 3
    (folder / "dolly.jsonl").unlink()
    with pytest.raises(UserError, match=r"which file of .* is dolly"):
        prepare("all", str(folder), str(tmp_path / "all.jsonl"))


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out" / "a.jsonl"
    out.parent.mkdir()
    out.write_text("old")
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress(b'{"instruction": "a", "output": "b"}\n' * 5000)[:-9])
    empty = write(tmp_path / "empty.jsonl", [{"instruction": "a"}])
    for path, reason in ((str(broken), "the file ends early"), (empty, "nothing to write")):
        with pytest.raises(UserError, match=reason):
            prepare("alpaca", path, str(out))
        assert out.read_text() == "old" and list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("options", "where", "message"),
    [
        ({"source": "doly"}, "source", "there is no source 'doly'"),
        ({"output": "a.csv"}, "output", "is not named as JSONL"),
        ({"output": ""}, "output", "no output file is named"),
        ({"mode": "hard"}, "mode", "'hard' is not one of simple, code_context"),
        ({"context": "web"}, "context", "'web' is not one of auto, file, diff"),
        ({"input": "/nowhere.jsonl"}, "input", "/nowhere.jsonl does not exist"),
    ],
)
def test_errors_name_the_key(options: dict[str, Any], where: str, message: str, tmp_path: Path) -> None:
    given = {"source": "dolly", "input": "x.jsonl", "output": str(tmp_path / "o.jsonl"), **options}
    with pytest.raises(UserError, match=message) as caught:
        prepare(**given)
    assert caught.value.where == where and list(tmp_path.iterdir()) == []


def test_without_an_input_the_hub_is_used(tmp_path: Path) -> None:
    for name, maker in MAKERS.items():
        with pytest.raises(UserError, match=f"{maker.hub} cannot be reached") as caught:
            prepare(name, None, str(tmp_path / "o.jsonl"))
        assert "input=DIR" in str(caught.value.remedy)


def test_conversations_are_what_prepare_writes(tmp_path: Path) -> None:
    rows = [message("p1", None), message("a1", "p1"), message("p2", None), message("a2", "p2")]
    _, written = made(tmp_path, "oasst1", rows)
    assert list(conversations("oasst1", str(tmp_path / "in.jsonl"))) == written
    assert list(conversations("oasst1", str(tmp_path / "in.jsonl"), samples=1)) == written[:1]
