"""Every type of source yields the same rows, each with its location."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.config.errors import UserError
from sft.data.readers import files_of, read_source
from sft.data.readers.rows import Broken, Where
from sft.data.readers.slices import Slice, parse_split
from sft.data.source import Source

ROWS = [{"instruction": f"say {n}", "output": f'ä, "{n}"\nline'} for n in range(1, 6)]
MANY = [{"instruction": f"say {n}", "output": str(n)} for n in range(3000)]


def read(path: Any = None, **options: Any) -> list[tuple[str, Any]]:
    source = Source(path=path if path is None or isinstance(path, list) else str(path), **options)
    return [(str(where), row) for where, row in read_source(source, "local")]


def rows_of(path: Any = None, **options: Any) -> list[Any]:
    return [row for _, row in read(path, **options)]


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[Any], delimiter: str = ",") -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def arrow(rows: list[Any], streaming: bool = False) -> bytes:
    data, file = pyarrow.Table.from_pylist(rows), io.BytesIO()
    make = pyarrow.ipc.new_stream if streaming else pyarrow.ipc.new_file
    with make(file, data.schema) as writer:
        writer.write_table(data)
    return file.getvalue()


def parquet(rows: list[Any]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


WRITERS: dict[str, Callable[[list[Any]], bytes]] = {
    "rows.json": lambda rows: json.dumps(rows).encode(),
    "pretty.json": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False).encode(),
    "lines.json": jsonl,
    "wrapped.json": lambda rows: json.dumps({"version": 1, "data": rows}).encode(),
    "rows.jsonl": jsonl,
    "rows.ndjson": jsonl,
    "ROWS.JSONL": jsonl,
    "array.jsonl": lambda rows: json.dumps(rows, indent=1).encode(),
    "bom.jsonl": lambda rows: b"\xef\xbb\xbf" + jsonl(rows),
    "bom.json": lambda rows: b"\xef\xbb\xbf" + json.dumps(rows).encode(),
    "windows.jsonl": lambda rows: jsonl(rows).replace(b"\n", b"\r\n"),
    "unended.jsonl": lambda rows: jsonl(rows).rstrip(b"\n"),
    "rows.json.gz": lambda rows: gzip.compress(json.dumps(rows).encode()),
    "rows.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "rows.jsonl.zst": lambda rows: zstandard.compress(jsonl(rows)),
    "frames.jsonl.zst": lambda rows: zstandard.compress(jsonl(rows[:2])) + zstandard.compress(jsonl(rows[2:])),
    "members.jsonl.gz": lambda rows: gzip.compress(jsonl(rows[:2])) + gzip.compress(jsonl(rows[2:])),
    "rows.csv": table,
    "bom.csv": lambda rows: b"\xef\xbb\xbf" + table(rows),
    "rows.csv.gz": lambda rows: gzip.compress(table(rows)),
    "semicolons.csv": lambda rows: table(rows, ";"),
    "rows.tsv": lambda rows: table(rows, "\t"),
    "rows.parquet": parquet,
    "rows.arrow": arrow,
    "stream.arrow": lambda rows: arrow(rows, streaming=True),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("rows", [ROWS, MANY], ids=["few", "many"])
def test_every_file_type_yields_the_rows_in_order(name: str, rows: list[Any], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(WRITERS[name](rows))
    assert rows_of(tmp_path / name) == rows


def test_rows_are_numbered_as_the_user_counts_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\n{"a": 1}\n\n{"a": 2}\n')
    assert read(tmp_path / "a.jsonl") == [("a.jsonl row 2", {"a": 1}), ("a.jsonl row 4", {"a": 2})]
    (tmp_path / "a.json").write_text('[\n\n{"a": 1},\n{"a": 2}]')
    assert read(tmp_path / "a.json") == [("a.json row 1", {"a": 1}), ("a.json row 2", {"a": 2})]
    (tmp_path / "a.csv").write_text('a\n"x\ny"\nz\n')
    assert read(tmp_path / "a.csv") == [("a.csv row 1 (line 2)", {"a": "x\ny"}), ("a.csv row 2 (line 4)", {"a": "z"})]
    (tmp_path / "a.parquet").write_bytes(parquet([{"a": 1}, {"a": 2}]))
    assert [where for where, _ in read(tmp_path / "a.parquet")] == ["a.parquet row 1", "a.parquet row 2"]


def test_a_location_parses_into_its_parts() -> None:
    where = pickle.loads(pickle.dumps(Where("a.csv", 2, " (line 3)")))
    assert (where, where.file, where.row) == ("a.csv row 2 (line 3)", "a.csv", 2)


def test_one_object_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"messages": [],\n "id": 1}')
    assert rows_of(tmp_path / "a.json") == [{"messages": [], "id": 1}]


def test_nulls_filled_in_by_a_table_are_removed(tmp_path: Path) -> None:
    call = {"name": "f", "arguments": {"x": 1}}
    rows = [
        {"id": 1, "messages": [{"role": "assistant", "content": "", "calls": [call]}]},
        {
            "id": None,
            "messages": [{"role": "user", "content": "b", "calls": [{"name": "g", "arguments": {"y": [None, 2]}}]}],
        },
    ]
    (tmp_path / "a.parquet").write_bytes(parquet(rows))
    assert rows_of(tmp_path / "a.parquet") == rows


# Directories, globs, lists


def test_a_directory_a_glob_and_a_list_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, value in (("b.jsonl", 2), ("a.jsonl", 1), ("sub/a.jsonl", 3)):
        (tmp_path / name).write_bytes(jsonl([{"n": value}]))
    for name in ("README.md", ".hidden.jsonl", "dataset_info.json", "sub/dataset_infos.json"):
        (tmp_path / name).write_text("{}")
    everything = [("a.jsonl row 1", {"n": 1}), ("b.jsonl row 1", {"n": 2}), ("sub/a.jsonl row 1", {"n": 3})]
    assert read(tmp_path) == everything
    assert read(f"{tmp_path}/**/*.jsonl") == everything
    assert read(f"{tmp_path}/?.jsonl") == everything[:2]
    assert read([str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")]) == everything[1::-1]
    assert read([str(tmp_path / "b.jsonl"), f"{tmp_path}/*.jsonl"]) == everything[1::-1], "no file twice"


def test_a_name_with_brackets_is_first_tried_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "rows[1].jsonl").write_bytes(jsonl(ROWS))
    assert rows_of(tmp_path / "rows[1].jsonl") == ROWS


def test_a_directory_with_splits_yields_the_requested_one(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test.jsonl", "dev/part.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jsonl([{"from": name}]))

    def names(**options: Any) -> list[str]:
        return [row["from"] for row in rows_of(tmp_path, **options)]

    assert names() == ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    assert names(split="train") == names()
    assert names(split="test") == ["test.jsonl"]
    assert names(split="validation") == names(split="dev") == ["dev/part.jsonl"]
    with pytest.raises(
        UserError, match=r"no file of .* belongs to the split gold\n  -> splits there: test, train, validation"
    ):
        names(split="gold")


def test_split_names_match_only_whole_words(tmp_path: Path) -> None:
    for name in ("latest.jsonl", "contest.jsonl"):
        (tmp_path / name).write_bytes(jsonl([{"from": name}]))
    assert len(rows_of(tmp_path)) == 2


def test_a_missing_path_suggests_the_nearest_existing_one(tmp_path: Path) -> None:
    (tmp_path / "alpaca.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "alpacca.json", rf"alpacca.json does not exist\n  -> did you mean {tmp_path}/alpaca.json\?"),
        (tmp_path / "no" / "a.json", f"{tmp_path}/no is not a directory"),
        (tmp_path / "empty", "nothing readable in"),
        (tmp_path / "*.parquet", "no readable file matches"),
        ("https://example.org/a.json", "is an address, not a file"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read(path)
        assert caught.value.where == "dataset.sources.local.path"


# Parts of sources


@given(st.integers(0, 30), st.none() | st.integers(-35, 35), st.none() | st.integers(-35, 35))
def test_slices_follow_python(count: int, start: int | None, stop: int | None) -> None:
    part = Slice(None if start is None else str(start), None if stop is None else str(stop))
    assert list(part.of(iter(range(count)))) == list(range(count))[start:stop]


@pytest.mark.parametrize(
    ("split", "name", "numbers"),
    [
        ("train", "train", range(10)),
        ("train[:3]", "train", range(3)),
        ("test[50%:]", "test", range(5, 10)),
        ("[-2:]", None, range(8, 10)),
        ("train[10%:-1]", "train", range(1, 9)),
    ],
)
def test_a_split_may_name_a_part(split: str, name: str | None, numbers: range) -> None:
    found, part = parse_split(split, "where")
    assert found == name and list(part.of(iter(range(10)))) == list(numbers)


def test_slices_and_samples_are_taken_from_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(ROWS))
    assert rows_of(path, samples=2) == ROWS[:2]
    assert rows_of(path, split="train[1:]", samples=2) == ROWS[1:3]
    assert rows_of(path, split="[60%:]") == ROWS[3:]
    with pytest.raises(UserError, match="'train 1' is not a split") as caught:
        read(path, split="train 1")
    assert caught.value.where == "dataset.sources.local.split"
    with pytest.raises(UserError, match="is one file and has no split test"):
        read(path, split="test")
    with pytest.raises(UserError, match="has no rows"):
        read(path, split="train[5:]")


def test_reading_stops_when_enough_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "b.jsonl.gz").write_bytes(b"broken")
    assert rows_of(f"{tmp_path}/*", samples=5) == ROWS


# Datasets on disk, of the hub, and made ones


def test_save_to_disk_is_read_with_its_splits(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    data = Dataset.from_list(MANY)
    data.save_to_disk(str(tmp_path / "one"))
    assert read(tmp_path / "one")[-1] == ("one row 3000", MANY[-1])
    DatasetDict({"train": data, "test": data.select([5, 3])}).save_to_disk(str(tmp_path / "two"))
    assert rows_of(tmp_path / "two") == MANY
    assert read(tmp_path / "two", split="test") == [("two/test row 1", MANY[5]), ("two/test row 2", MANY[3])]
    with pytest.raises(UserError, match="no split gold\n  -> splits: test, train"):
        read(tmp_path / "two", split="gold")
    for file in (tmp_path / "one").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{tmp_path}/one: cannot be read"):
        read(tmp_path / "one")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """A hub that holds ROWS, and a list of what it was asked for."""
    import datasets

    asked: list[tuple[Any, dict[str, Any]]] = []

    def load_dataset(*names: Any, **options: Any) -> Any:
        asked.append((names, options))
        data = datasets.Dataset.from_list(ROWS)
        return data.to_iterable_dataset() if options["streaming"] else data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield asked


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_dataset_is_loaded_as_described(hub: list[Any], streaming: bool) -> None:
    options = {"subset": "en", "split": "test[1:3]", "revision": "abc", "streaming": streaming}
    assert read(name="org/data", **options) == [
        ("org/data/en:test row 2", ROWS[1]),
        ("org/data/en:test row 3", ROWS[2]),
    ]
    (names, given), *_ = hub
    assert names == ("org/data", "en")
    assert given == {"split": "test", "revision": "abc", "streaming": streaming, "token": "hf_secret"}


HUB_ERRORS: dict[str, tuple[Exception, str, str]] = {
    "gated": (OSError("Dataset 'o/d' is a gated dataset on the Hub."), "o/d is gated", "set HF_TOKEN"),
    "split": (ValueError("Unknown split \"dev\". Should be one of ['train']."), "o/d has no split dev", "['train']"),
    "subset": (
        ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']"),
        "o/d has several configurations",
        "subset: one of ['a', 'b']",
    ),
    "script": (RuntimeError("Dataset scripts are no longer supported, but found d.py"), "which is not run", "parquet"),
    "else": (RuntimeError("a\nb"), "o/d cannot be loaded: RuntimeError: a b", ""),
}


@pytest.mark.parametrize("name", HUB_ERRORS)
def test_hub_errors_are_one_line_with_a_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    error, what, remedy = HUB_ERRORS[name]

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as caught:
        read(name="o/d")
    assert what in caught.value.what and "\n" not in caught.value.what and remedy in (caught.value.remedy or "")
    assert str(caught.value.where).startswith("dataset.sources.local.")


def test_a_missing_connection_is_reported() -> None:
    with pytest.raises(UserError, match="o/d cannot be reached: HF_HUB_OFFLINE is set") as caught:
        read(name="o/d")
    assert "dataset.sources.local.path=DIR" in str(caught.value.remedy)


def test_a_path_given_as_a_name_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a path here"):
        read(name=str(tmp_path))


def test_a_generator_yields_rows() -> None:
    for generator in (ROWS, iter(ROWS), lambda: (row for row in ROWS), {"_target_": "copy.copy", "x": ROWS}):
        assert read(generator=generator) == [(f"local row {n}", row) for n, row in enumerate(ROWS, 1)]
    assert isinstance(rows_of(generator=[7, {"a": 1}])[0], Broken)
    for wrong in (lambda: 7, lambda: "text", {"_target_": "builtins.dict", "a": 1}):
        with pytest.raises(UserError, match=r"gives \w+, not rows"):
            read(generator=wrong)
    with pytest.raises(UserError, match="a generator has no splits"):
        read(generator=ROWS, split="train")


def test_files_of_the_same_name_are_distinguished_by_folder(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_bytes(jsonl(ROWS))
    files = files_of(Source(path=str(tmp_path)), "where")
    assert [(file.label, file.kind, file.compression) for file in files] == [
        ("x/a.jsonl", "jsonl", None),
        ("y/a.jsonl", "jsonl", None),
    ]


# Properties

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
json_rows = st.lists(st.dictionaries(st.text(max_size=4), json_values, min_size=1, max_size=3), min_size=1, max_size=6)


@settings(max_examples=60)
@given(json_rows, st.sampled_from([None, 0, 2]), st.booleans(), st.integers(0, 5))
def test_any_rows_round_trip_and_a_broken_one_is_found(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], indent: int | None, ascii_only: bool, at: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    at = min(at, len(rows))
    texts = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    (folder / "a.jsonl").write_text("\n".join(texts), encoding="utf-8", newline="\n")
    assert rows_of(folder / "a.jsonl") == rows
    pretty = json.dumps(rows, ensure_ascii=ascii_only, indent=indent)
    (folder / "a.json").write_text(pretty, encoding="utf-8", newline="\n")
    assert rows_of(folder / "a.json") == rows
    texts.insert(at, '{"a": [1, {"b" 2}]}')
    (folder / "b.jsonl").write_text("\n".join(texts), encoding="utf-8", newline="\n")
    (folder / "b.json").write_text("[" + " ,\n".join(texts) + "]", encoding="utf-8", newline="\n")
    for name in ("b.jsonl", "b.json"):
        found = read(folder / name)
        broken = [(where, row.reason) for where, row in found if isinstance(row, Broken)]
        assert [row for _, row in found if not isinstance(row, Broken)] == rows
        assert [where for where, _ in broken] == [f"{name} row {at + 1}"] and "broken JSON" in broken[0][1]


@settings(max_examples=100)
@given(st.binary(max_size=60), st.sampled_from(["json", "jsonl", "csv", "jsonl.gz", "jsonl.zst", "parquet", "arrow"]))
def test_any_bytes_are_rows_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"bytes.{suffix}"
    path.write_bytes(data)
    try:
        rows = rows_of(path)
    except UserError as error:
        assert "bytes" in str(error)
        return
    assert rows and all(isinstance(row, (dict, Broken)) for row in rows)


def test_a_small_table_that_expands_to_gigabytes_is_refused(tmp_path: Path) -> None:
    text = pyarrow.array(["x" * 2_000_000])
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 2000, pyarrow.int32()), text)
    path = tmp_path / "bomb.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match="grows to more than 500 times its size when it is read"):
        rows_of(path)


def test_a_table_of_large_rows_is_read_a_few_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "large.parquet"
    rows = [{"text": f"{n}" * 300_000} for n in range(40)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression="none", use_dictionary=False)
    assert rows_of(path) == rows
