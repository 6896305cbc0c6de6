"""Attacks through files of rows: bombs, pipes, endless lines, code in columns. Memory stays bounded; file and row are
named."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.config.errors import UserError
from sft.data.formats import RowError, recognise
from sft.data.readers import json_rows, lines, read_source, streams
from sft.data.source import Source

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
LINE = json.dumps(GOOD).encode() + b"\n"
DEEP = "[" * 100_000 + "]" * 100_000
LONG = 80 << 20  # bytes of a file with a hole in it, which takes no room on the disk


class Owned:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch owned",))


def without_end(path: Path, size: int = LONG) -> Path:
    """A row, a line of that many zeros, a row."""
    with open(path, "wb") as file:
        file.write(LINE)
        file.seek(size, io.SEEK_CUR)
        file.write(b"\n" + LINE)
    return path


def nested(levels: int) -> bytes:
    call = {"name": "f", "arguments": "@"}
    row = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "", "tool_calls": [call]}]}
    return json.dumps(row).replace('"@"', '{"a":' * levels + "1" + "}" * levels).encode() + b"\n"


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def link(path: Path, to: str) -> Path:
    path.symlink_to(to)
    return path


def pickled(path: Path) -> Path:
    return written(path, pickle.dumps(Owned()))


def numpy_objects(path: Path) -> Path:
    import numpy

    numpy.save(path, numpy.array([Owned()], dtype=object), allow_pickle=True)
    return path


def extension(path: Path) -> Path:
    """An Arrow file whose column says that it is a pickled Python type."""
    import pyarrow

    kind = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(Owned())}
    schema = pyarrow.schema([pyarrow.field("text", pyarrow.string(), metadata=kind)])
    table = pyarrow.table([pyarrow.array(["hello"])], schema=schema)
    with pyarrow.ipc.new_file(str(path), schema) as file:
        file.write_table(table)
    return path


def saved_with_pickle(path: Path) -> Path:
    """A directory of save_to_disk with a pickle beside the rows, and a script of the dataset's own."""
    from datasets import Dataset

    Dataset.from_list([GOOD]).save_to_disk(str(path))
    pickled(path / "cache.pkl")
    (path / "saved.py").write_text("open('owned', 'w')\n")
    return path


def saved_with_type(path: Path) -> Path:
    """A directory of save_to_disk whose features name a type that is none."""
    saved_with_pickle(path)
    info = json.loads((path / "dataset_info.json").read_text())
    info["features"] = {"messages": {"_type": "os.system"}}
    (path / "dataset_info.json").write_text(json.dumps(info))
    return path


def loop(path: Path) -> Path:
    path.mkdir()
    written(path / "rows.jsonl", LINE)
    (path / "again").symlink_to(path)
    (path / "other.jsonl").symlink_to("rows.jsonl")
    return path


READ = "1 row is read"

# What is tried: (a function that makes it at a path, the path's name, what is told)
ATTACKS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "a line without end in JSON lines": (
        without_end,
        "a.jsonl",
        "a.jsonl row 2: the line is too long: more than 64 MiB",
    ),
    "a line without end in CSV": (without_end, "a.csv", "a.csv line 2: a line is longer than 64 MiB"),
    "a JSON value without end": (without_end, "a.json", "holds more than 64 MiB in one JSON value"),
    "a gzip bomb": (
        lambda path: written(path, gzip.compress(b"\0" * (1 << 24), 9)),
        "a.jsonl.gz",
        "grows to more than 500 times its size when it is decompressed",
    ),
    "a gzip bomb of blank lines": (
        lambda path: written(path, gzip.compress(b"\n" * (1 << 24), 9)),
        "a.jsonl.gz",
        "grows to more than 500 times its size when it is decompressed",
    ),
    "a zstandard bomb": (
        lambda path: written(path, zstandard.compress(b"\n" * (1 << 24))),
        "a.json.zst",
        "grows to more than 500 times its size when it is decompressed",
    ),
    "a pipe as a file": (fifo, "a.jsonl", "a.jsonl is not a regular file"),
    "a device behind a link": (lambda path: link(path, "/dev/zero"), "a.jsonl", "a.jsonl is not a regular file"),
    "a device by its own name": (lambda path: Path("/dev/zero"), "a", "/dev/zero is not a regular file"),
    "a link to itself": (lambda path: link(path, path.name), "a.jsonl", "a.jsonl is a broken link"),
    "a directory with a link to itself": (loop, "rows", READ),
    "a pipe in a directory": (
        lambda path: (path.mkdir(), fifo(path / "a.jsonl"), written(path / "b.jsonl", LINE)),
        "rows",
        READ,
    ),
    "a path with a NUL in it": (lambda path: Path(f"{path}\0.jsonl"), "a", "is not a path"),
    "a pickle as a dataset": (pickled, "a.pkl", "has no file type that can be read"),
    "a pickle named as JSON lines": (pickled, "a.jsonl", "a.jsonl row 1: invalid UTF-8"),
    "a pickle named as Parquet": (pickled, "a.parquet", "is not an intact Parquet file"),
    "a pickle named as Arrow": (pickled, "a.arrow", "is not an intact Arrow file"),
    "a pickled numpy array": (numpy_objects, "a.npy", "has no file type that can be read"),
    "a torch file as a dataset": (pickled, "a.pt", "has no file type that can be read"),
    "an Arrow type that is a pickle": (extension, "a.arrow", READ),
    "a saved dataset with a pickle and a script": (saved_with_pickle, "saved", READ),
    "a saved dataset whose types are code": (saved_with_type, "saved", "saved: cannot be read"),
    "a dataset's loading script": (
        lambda path: written(path, b"open('owned', 'w')\n"),
        "script.py",
        "has no file type that can be read",
    ),
    "tool arguments nested 90 deep": (lambda path: written(path, LINE + nested(90)), "a.jsonl", "nested too deeply"),
    "tool arguments nested 400 deep": (lambda path: written(path, LINE + nested(400)), "a.jsonl", "nested too deeply"),
    "tool arguments nested 900 deep": (lambda path: written(path, LINE + nested(900)), "a.jsonl", "nested too deeply"),
    "JSON nested 100,000 deep": (
        lambda path: written(path, LINE + b'{"messages": ' + DEEP.encode() + b"}\n"),
        "a.jsonl",
        "a.jsonl row 2: nested too deeply",
    ),
    "an array with a deep row": (
        lambda path: written(path, b"[" + LINE + b", " + nested(400) + b"]"),
        "a.json",
        "a.json row 2: nested too deeply",
    ),
    "half of an array of arrays": (lambda path: written(path, b"[" * 100_000), "a.json", "nested too deeply"),
    "NUL bytes as after a crash": (
        lambda path: written(path, LINE + b"\0" * 4096),
        "a.jsonl",
        "row 2: broken JSON: NUL",
    ),
    "invalid UTF-8": (
        lambda path: written(path, LINE + b'{"text": "\xc3\x28"}\n'),
        "a.jsonl",
        "a.jsonl row 2: invalid UTF-8 at byte 11 of the line",
    ),
    "half a surrogate pair": (
        lambda path: written(path, LINE.replace(b"hello", b"\\ud83d")),
        "a.jsonl",
        "a.jsonl row 1: invalid Unicode: half a surrogate",
    ),
    "a number of 5,000 digits": (
        lambda path: written(path, LINE + b'{"messages": ' + b"9" * 5000 + b"}\n"),
        "a.jsonl",
        "a.jsonl row 2: broken JSON: Exceeds the limit",
    ),
    "NaN where an answer should be": (
        lambda path: written(path, LINE.replace(b'"hello"', b"NaN")),
        "a.jsonl",
        "a.jsonl row 1: not text: the content of message 2 is NaN",
    ),
    "a key twice": (
        lambda path: written(path, LINE + b'{"messages": [], "messages": []}\n'),
        "a.jsonl",
        "a.jsonl row 2: duplicate key 'messages'",
    ),
    "a byte order mark": (lambda path: written(path, b"\xef\xbb\xbf" + LINE), "a.jsonl", READ),
    "UTF-16": (
        lambda path: written(path, LINE.decode().encode("utf-16")),
        "a.jsonl",
        "a.jsonl: the file is UTF-16",
    ),
    "a quote that never closes": (
        lambda path: written(path, b'instruction,output\n"a,b\n' + b"c,d\n" * 1000),
        "a.csv",
        "a quote opens here and never closes",
    ),
    "a role that is a control sequence": (
        lambda path: written(path, LINE.replace(b"assistant", b"\\u001b[2J")),
        "a.jsonl",
        "a.jsonl row 1: unknown role '\\x1b[2J' in message 2",
    ),
    "a saved directory that is empty": (lambda path: path.mkdir(), "rows", "nothing readable in"),
}


def told(path: Path) -> str:
    """What is told of a source: an error, the broken rows' reasons, or how many rows are read."""
    try:
        rows = list(read_source(Source(path=str(path)), "local"))
        converter = recognise(Source(path=str(path)), [row for _, row in rows], "dataset.sources.local")
    except UserError as error:
        return str(error)
    broken = []
    for where, row in rows:
        try:
            converter.to_conversation(row)
        except RowError as error:
            broken.append(f"{where}: {error.reason}")
    return "\n".join(broken) if broken else f"{len(rows)} row{'s' * (len(rows) > 1)} is read"


@pytest.mark.parametrize("name", ATTACKS)
def test_each_hostile_file_is_refused_with_its_name_and_reason(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, file, reason = ATTACKS[name]
    monkeypatch.setattr(streams, "SMALLEST_BOMB", 1 << 20)
    monkeypatch.setattr(lines, "LARGEST_DOCUMENT", 64 << 20)
    made = make(tmp_path / file)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reason in told(made if isinstance(made, Path) else tmp_path / file)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 1 << 19
    assert not (tmp_path / "owned").exists()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "json"])
def test_a_gigabyte_line_does_not_take_a_gigabyte_of_memory(suffix, tmp_path):
    path = without_end(tmp_path / f"a.{suffix}", 1 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = told(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert "more than" in answer or "is longer than" in answer
    assert grown < (3 << 20 if suffix == "json" else 1 << 19)


def test_a_too_long_line_is_skipped_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 100)
    monkeypatch.setattr(json_rows, "LONGEST_LINE", 100)
    long = json.dumps({"text": "x" * 500}).encode() + b"\n"
    path = written(tmp_path / "a.jsonl", LINE[:80].strip() + b"\n" + long + b'{"text": "b"}\n' + long.strip())
    rows = [(str(where), getattr(row, "reason", row)) for where, row in read_source(Source(path=str(path)), "local")]
    assert rows[1:] == [
        ("a.jsonl row 2", "the line is too long: more than 100 bytes"),
        ("a.jsonl row 3", {"text": "b"}),
        ("a.jsonl row 4", "the line is too long: more than 100 bytes"),
    ]


def test_normally_compressed_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "SMALLEST_BOMB", 1 << 10)
    data = b"".join(LINE.replace(b"hi", b"hi %d" % i) for i in range(5000))
    for suffix, compress in ((".gz", gzip.compress), (".zst", zstandard.compress)):
        path = written(tmp_path / f"a.jsonl{suffix}", compress(data))
        assert len(list(read_source(Source(path=str(path)), "local"))) == 5000


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(st.sampled_from("ab\",\r\n'é€"), max_size=6), min_size=2, max_size=2).filter(
        lambda names: len({name.strip() for name in names}) == 2 and all(name.strip() for name in names)
    ),
    st.lists(st.lists(st.text(max_size=8).filter(lambda t: "\0" not in t), min_size=2, max_size=2), max_size=4),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_any_table_round_trips(tmp_path_factory, names, records, end):
    import csv

    names = [name.strip().replace("\r", "").replace("\n", "") or f"n{i}" for i, name in enumerate(names)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([names, *records])
    path = tmp_path_factory.getbasetemp() / "table.csv"
    try:
        path.write_bytes(text.getvalue().encode())
    except UnicodeEncodeError:
        return
    if len(set(names)) < 2:
        return
    found = list(read_source(Source(path=str(path)), "local")) if records else []
    assert [row for _, row in found] == [dict(zip(names, record, strict=True)) for record in records]


@settings(max_examples=150, deadline=None)
@given(st.recursive(st.sampled_from(["1", '"a"', "null", "NaN", "-0", "1e999", '"\\ud800"', "tru"]),
                    lambda inner: st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
                    | st.dictionaries(st.sampled_from(["messages", "role", "content", "a"]), inner, max_size=3).map(
                        lambda items: "{" + ",".join(f'"{k}": {v}' for k, v in items.items()) + "}"), max_leaves=12),
       st.sampled_from(["json", "jsonl"]))  # fmt: skip
def test_any_json_is_a_row_or_gets_a_reason(tmp_path_factory, text, suffix):
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    path.write_text(f"{text}\n")
    assert told(path)
