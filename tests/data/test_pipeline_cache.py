"""A second run tokenizes nothing; after a change of anything that tokens depend on, no stale entry is used."""

from __future__ import annotations

import fcntl
import gzip
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sft.config.errors import UserError
from sft.data import content as module
from sft.data.pipeline import prepare


@pytest.fixture
def run(word_encoder, settings, caplog):
    """Prepares; gives the rows, how many conversations were encoded, and what the log said."""

    def prepared(sources: dict, encoder=None, **options):
        encoder = encoder or word_encoder()
        caplog.clear()
        with caplog.at_level(logging.INFO):
            result = prepare(settings(sources, **options), encoder, seed=0)
        return result, len(encoder.encoded), caplog.text

    return prepared


@pytest.fixture
def rows(chat):
    return [chat(f"q {i}", f"a {i}") for i in range(10)]


def test_the_second_run_tokenizes_nothing_and_says_so(run, write, rows):
    sources = {"a": {"path": write("rows.jsonl", rows)}}
    first, encoded, said = run(sources)
    assert encoded == 10 and "rows come from the cache" not in said
    again, encoded, said = run(sources)
    assert encoded == 0 and "rows come from the cache" in said
    assert list(again.train) == list(first.train) and again.fingerprint == first.fingerprint
    for report in (first.report, again.report):
        report["sources"]["a"].pop("cached")
    assert again.report == first.report


def test_later_steps_do_not_need_tokenizing_again(run, write, rows, tmp_path):
    path = write("rows.jsonl", rows)
    run({"a": {"path": path}})
    for options in ({"packing": True}, {"max_length": 9}, {"eval_fraction": 0.5}, {"size": 30}, {"shuffle": False}):
        assert run({"a": {"path": path}}, **options)[1] == 0
    assert run({"b": {"path": path, "weight": 0.3}})[1] == 0  # another name and weight
    shutil.copy(path, tmp_path / "copied.jsonl")
    moved = tmp_path / "elsewhere" / "rows.jsonl"
    moved.parent.mkdir()
    shutil.copy(path, moved)
    assert run({"a": {"path": str(moved)}})[1] == 0  # the same content in another place
    assert run({"a": {"path": str(tmp_path / "copied.jsonl")}})[1] == 10  # rows are named by another file


def test_changed_content_is_read_again_even_with_the_same_size_and_time(run, write, rows):
    path = write("rows.jsonl", rows)
    stat = os.stat(path)
    run({"a": {"path": path}})
    write("rows.jsonl", json.loads(json.dumps(rows).replace("q 3", "Q 3")))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert os.stat(path).st_size == stat.st_size
    assert run({"a": {"path": path}})[1] == 10


@pytest.mark.parametrize(
    "options", [{"format": "messages"}, {"samples": 5}, {"columns": {"messages": "messages"}}, {"split": "train[:5]"}]
)
def test_a_sources_options_are_part_of_the_key(run, write, rows, options):
    path = write("rows.jsonl", rows)
    run({"a": {"path": path}})
    assert run({"a": {"path": path, **options}})[1] > 0


def test_the_encoder_the_check_and_the_code_are_part_of_the_key(run, write, rows, word_encoder, monkeypatch):
    sources = {"a": {"path": write("rows.jsonl", rows)}}
    run(sources)
    assert run(sources, encoder=word_encoder(fingerprint="another template"))[1] == 10
    assert run(sources, check_rows=9)[1] == 10
    assert run(sources, use_text_column=True)[1] == 10
    monkeypatch.setattr(module, "code_version", lambda: "a later version")
    assert run(sources)[1] == 10


def test_a_failed_check_is_not_remembered_as_passed(run, write, rows, word_encoder):
    sources = {"a": {"path": write("rows.jsonl", rows)}}
    for _ in range(2):
        with pytest.raises(UserError, match="masks differ"):
            run(sources, encoder=word_encoder(disagree=True))


def test_broken_rows_are_reported_the_same_from_the_cache(run, write, rows):
    sources = {"a": {"path": write("rows.jsonl", [*rows, "broken", {"messages": 7}])}}
    texts = []
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            run(sources)
        texts.append(str(caught.value))
    assert texts[0] == texts[1] and "rows.jsonl row 12: " in texts[0]
    result, encoded, _ = run(sources, max_dropped=0.5)
    assert encoded == 0 and result.report["sources"]["a"]["broken"] == 2


def test_a_damaged_entry_is_recreated(run, write, rows, tmp_path):
    sources = {"a": {"path": write("rows.jsonl", rows)}}
    first = list(run(sources)[0].train)
    (ids,) = (tmp_path / "sft-cache" / "data").glob("*/input_ids.bin")
    ids.write_bytes(bytes(len(ids.read_bytes())))
    again, encoded, said = run(sources)
    assert encoded == 10 and "damaged" in said and list(again.train) == first
    assert run(sources)[1] == 0


def test_a_disabled_cache_keeps_nothing(run, write, rows, tmp_path):
    sources = {"a": {"path": write("rows.jsonl", rows)}}
    assert [run(sources, cache=False)[1] for _ in range(2)] == [10, 10]
    assert not (tmp_path / "sft-cache").exists()


def test_a_users_function_is_keyed_by_its_results(run, write, rows, tmp_path, monkeypatch):
    """The function's own module does not change, a module that it imports does."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "users_helper.py").write_text("WORD = 'one'\n")
    (tmp_path / "users_code.py").write_text(
        "import users_helper\n\ndef convert(row):\n    row['messages'][1]['content'] = users_helper.WORD\n    return row\n"
    )
    import users_code
    import users_helper

    sources = {"a": {"path": write("rows.jsonl", rows), "convert": users_code.convert}}
    assert [run(sources)[1] for _ in range(2)] == [10, 0]
    monkeypatch.setattr(users_helper, "WORD", "two")
    result, encoded, _ = run(sources)
    assert encoded == 10 and result.report["sources"]["a"]["converted"] == 10
    for name in ("users_code", "users_helper"):
        sys.modules.pop(name)


def test_a_users_generator_is_keyed_by_its_rows(run, chat):
    made = [chat("q", "a"), chat("q 2", "b")]
    assert [run({"a": {"generator": lambda: made}})[1] for _ in range(2)] == [2, 0]
    made.append(chat("q 3", "c"))
    assert run({"a": {"generator": lambda: made}})[1] == 3


def test_a_packaged_generator_is_keyed_by_its_arguments(run):
    node = {"_target_": "sft.data.tickets.generate", "part": "train", "rows": 20}
    assert [run({"a": {"generator": node}})[1] for _ in range(2)] == [20, 0]
    assert run({"a": {"generator": {**node, "seed": 1}}})[1] == 20


def test_a_hub_dataset_is_keyed_by_its_files(run, rows, tmp_path, monkeypatch):
    import datasets

    from sft.data.readers import hub

    def stored(name: str, some: list) -> None:
        datasets.Dataset.from_list(some).save_to_disk(tmp_path / name)
        monkeypatch.setattr(hub, "load_hub", lambda *_: datasets.load_from_disk(str(tmp_path / name)))

    stored("one", rows)
    assert [run({"a": {"name": "somebody/rows"}})[1] for _ in range(2)] == [10, 0]
    stored("two", rows[:-1])
    assert run({"a": {"name": "somebody/rows"}})[1] == 9
    monkeypatch.setattr(hub, "load_hub", lambda *_: datasets.Dataset.from_list(rows[:4]))  # in memory, no files
    assert [run({"a": {"name": "somebody/rows"}})[1] for _ in range(2)] == [4, 0]


def test_files_of_a_directory_and_compressed_files_are_keyed_by_content(run, write, rows, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        with gzip.open(folder / name, "wt") as file:
            file.write("\n".join(map(json.dumps, rows)))
    sources = {"a": {"path": str(folder)}}
    assert [run(sources)[1] for _ in range(2)] == [20, 0]
    with gzip.open(folder / "three.jsonl.gz", "wt") as file:
        file.write(json.dumps(rows[0]))
    assert run(sources)[1] == 21


def test_of_two_concurrent_runs_one_tokenizes_and_the_other_waits(word_encoder, settings, write, rows):
    dataset = settings({"a": {"path": write("rows.jsonl", rows)}}, num_proc=1)
    encoders = [word_encoder(), word_encoder()]
    threads = [threading.Thread(target=prepare, args=(dataset, each), kwargs={"seed": 0}) for each in encoders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(each.encoded) for each in encoders) == [0, 10]


ROOT = Path(__file__).resolve().parents[2]
SLOW = """
import sys, time
from sft.data.pipeline import prepare
from sft.data.spec import Dataset

class Slow:
    fingerprint = "slow"
    def encode(self, conversations):
        print("encoding", flush=True)
        time.sleep(60)

prepare(Dataset(path=sys.argv[1], num_proc=2, check_rows=0), Slow(), seed=0)
"""


def test_a_killed_run_leaves_no_lock_and_no_partial_entry(run, write, rows, tmp_path):
    path = write("rows.jsonl", rows * 120)
    environment = {**os.environ, "SFT_CACHE": str(tmp_path / "sft-cache"), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", SLOW, path], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline().startswith("encoding")
    process.kill()  # its workers cannot be told, and sleep on for a while
    process.wait()
    (lock,) = (tmp_path / "sft-cache" / "data").glob("*.lock")
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.stdout.close()
    assert run({"a": {"path": path}}, num_proc=1)[1] == 1200
