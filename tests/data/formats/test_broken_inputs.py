"""Broken inputs of many kinds: each is reported with file, row and reason, and none silently becomes a conversation."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from sft.config.errors import UserError
from sft.data.formats import RowError, recognise
from sft.data.readers import read_source
from sft.data.source import Source

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
U, A = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
DEEP = "[" * 100_000 + "]" * 100_000


def problems(path: Path, **options: Any) -> tuple[int, dict[str, str]]:
    """How many rows of a file become conversations, and {place: reason} of those that do not."""
    source = Source(path=str(path), **options)
    rows = list(read_source(source, "local"))
    converter = recognise(source, [row for _, row in rows], "dataset.sources.local")
    good, bad = 0, {}
    for where, row in rows:
        try:
            converter.to_conversation(row)
            good += 1
        except RowError as error:
            bad[str(where)] = error.reason
    return good, bad


def lines(*rows: Any) -> bytes:
    """JSONL; bytes and text stand as they are."""
    parts = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    return b"\n".join(parts)


def chat(*messages: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages), **columns}


def call(arguments: Any = "{}", name: Any = "f", **more: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}, **more}],
    }


def turns(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in pairs]}


# A good row, the broken one (row 2 of the file), a good row: {name: (broken row, reason)}
LINES: dict[str, tuple[Any, str]] = {
    "no JSON": ("not json", "broken JSON: Expecting value at character 1"),
    "a cut-off line": ('{"messages": [{"role": "user", "content": "h', "broken JSON: Unterminated string"),
    "Python's quotes": ("{'messages': []}", "JSON's quotes are double"),
    "two rows in a line": (json.dumps(GOOD) + json.dumps(GOOD), "broken JSON: Extra data"),
    "a trailing comma": ('{"messages": [],}', "broken JSON: "),
    "NUL bytes": (b"\0" * 40, "broken JSON: NUL bytes"),
    "invalid UTF-8": (b'{"text": "caf\xe9"}', "invalid UTF-8 at byte 14 of the line"),
    "a raw control character": (b'{"text": "a\x01b"}', "broken JSON: Invalid control character"),
    "a number of 5000 digits": ('{"text": ' + "9" * 5000 + "}", "broken JSON: Exceeds the limit"),
    "nested too deeply": (f'{{"messages": {DEEP}}}', "nested too deeply"),
    "a key twice": ('{"text": "a", "text": "b"}', "duplicate key 'text'"),
    "a list": ([U, A], "the row is not an object but a list"),
    "text": ('"hi"', "the row is not an object but text"),
    "a number": ("7", "the row is not an object but a number"),
    "null": ("null", "the row is not an object but null"),
    "an empty object": ({}, "the row is empty"),
    "messages null": ({"messages": None}, "null in column 'messages'"),
    "messages a number": ({"messages": 7}, "not a list: the column 'messages' is a number"),
    "messages text": ({"messages": "hi"}, "not JSON: the column 'messages', 'hi'"),
    "messages an object": ({"messages": U}, "not a list: the column 'messages' is an object"),
    "no message": ({"messages": []}, "the column 'messages' has no message"),
    "a message null": (chat(None, A), "not a message: message 1 is null"),
    "a message as text": (chat("hi", A), "not a message: message 1 is text"),
    "no role": (chat({"content": "hi"}, A), "no role in message 1; its keys are content"),
    "an empty message": (chat({}, A), "no role in message 1; its keys are none"),
    "an unknown role": (chat({"role": "narrator", "content": "x"}, A), "unknown role 'narrator' in message 1"),
    "a mistyped role": (chat(U, {"role": "asistant", "content": "x"}), "did you mean assistant?"),
    "a role of another type": (chat({"role": 3, "content": "x"}, A), "unknown role in message 1: a number"),
    "no answer": (chat(U), "no assistant turn"),
    "an answer null": (chat(U, {"role": "assistant", "content": None}), "null as the content of message 2"),
    "an empty answer": (chat(U, {"role": "assistant", "content": ""}), "empty answer in message 2"),
    "a blank answer": (chat(U, {"role": "assistant", "content": " \n\t"}), "empty answer in message 2"),
    "an empty question": (chat({"role": "user", "content": ""}, A), "empty user turn in message 1"),
    "no content": (chat(U, {"role": "assistant"}), "null as the content of message 2"),
    "content a number": (chat(U, {"role": "assistant", "content": 5}), "the content of message 2 is a number"),
    "content NaN": ('{"messages": [{"role": "user", "content": NaN}]}', "the content of message 1 is NaN"),
    "content true": (chat(U, {"role": "assistant", "content": True}), "the content of message 2 is true or false"),
    "content an object": (chat(U, {"role": "assistant", "content": {"a": 1}}), "the content of message 2 is an object"),
    "a picture": (
        chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, A),
        "the content of message 1 has a part of type 'image_url'",
    ),
    "a part without text": (
        chat({"role": "user", "content": [{"type": "text"}]}, A),
        "a part of the content of message 1 has no text; its keys are type",
    ),
    "a part that is a number": (
        chat({"role": "user", "content": [1]}, A),
        "a part of the content of message 1 is a number",
    ),
    "a column of pictures": (chat(U, A, images=["a.png"]), "not text alone: the row has images"),
    "half a surrogate pair": (
        '{"messages": [{"role": "user", "content": "\\ud800"}]}',
        "invalid Unicode: half a surrogate",
    ),
    "an escaped NUL": (chat({"role": "user", "content": "a\0b"}, A), "NUL character in the content of message 1"),
    "a question at the end": (chat(U, A, U), "no answer at the end: the last message is the user's"),
    "a result at the end": (chat(U, call(), {"role": "tool", "content": "1"}), "the last message is the tool's"),
    "nothing trained": (chat(U, {**A, "train": False}), "no turn is trained"),
    "train as text": (chat(U, {**A, "train": "no"}), "train is not true or false but 'no' in message 2"),
    "weight of a half": (chat(U, {**A, "weight": 0.5}), "weight is not 0 or 1 but 0.5 in message 2"),
    "train against weight": (chat(U, {**A, "train": True, "weight": 0}), "train and weight contradict each other"),
    "a call without a name": (chat(U, call(name=None), A), "no name of a tool"),
    "arguments no JSON": (chat(U, call("{'a': 1}"), A), "not JSON: the arguments of f"),
    "arguments a list": (chat(U, call("[1]"), A), "arguments are not an object but a list, in the call of f"),
    "arguments NaN": (
        '{"messages": [{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"a": NaN}}]}]}',
        "not JSON: NaN in the arguments of f",
    ),
    "calls a number": (
        chat(U, {"role": "assistant", "content": "", "tool_calls": 3}),
        "not a list: the tool_calls of message 2",
    ),
    "a call that is text": (
        chat(U, {**A, "tool_calls": [["f"]]}),
        "not a tool call: the tool_calls of message 2 is a list",
    ),
    "a result of no call": (
        chat(U, call(id="c1"), {"role": "tool", "content": "1", "tool_call_id": "c9"}, A),
        "a result without its call: 'c9' in message 3",
    ),
    "tools no JSON": (chat(U, A, tools="[{]"), "not JSON: the column 'tools'"),
    "tools a number": (chat(U, A, tools=3), "not a list: the column 'tools' is a number"),
    "a tool without a name": (chat(U, A, tools=[{"description": "x"}]), "no name of a tool in the tool 1"),
    "a tool that is a number": (chat(U, A, tools=[1]), "not a tool: tool 1 of tools is a number"),
    "another format": (
        {"instruction": "a", "output": "b"},
        "another format: instruction, where the source's rows are messages",
    ),
    "unknown columns": ({"foo": 1, "bar": 2}, "missing column 'messages'; the row has foo, bar"),
    "two conversations in a row": (
        chat(U, A, conversations=[{"from": "human", "value": "hi"}, {"from": "gpt", "value": "bye"}]),
        "contradicting columns: messages and sharegpt end in different answers",
    ),
    "another answer beside": (
        chat(U, A, prompt="hi", completion="bye"),
        "messages and prompt_completion end in different",
    ),
    "another system prompt": (
        chat({"role": "system", "content": "a"}, U, A, system="b"),
        "the system column and the system message differ",
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_a_broken_line_is_reported_and_the_others_are_read(name: str, tmp_path: Path) -> None:
    broken, reason = LINES[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(GOOD, broken, GOOD))
    good, bad = problems(path)
    assert good == 2 and list(bad) == ["rows.jsonl row 2"]
    assert reason in bad["rows.jsonl row 2"]


# Rows of other formats: {name: (rows, {number of the broken row: reason})}
FORMATS: dict[str, tuple[list[Any], dict[int, str]]] = {
    "a ShareGPT role": (
        [turns(("human", "a"), ("gpt", "b")), turns(("alien", "a"), ("gpt", "b"))],
        {2: "unknown role 'alien' in message 1"},
    ),
    "a ShareGPT value null": ([turns(("human", None), ("gpt", "b"))], {1: "null as the content of message 1"}),
    "a function_call that is text": (
        [turns(("human", "a"), ("function_call", "call f"), ("gpt", "b"))],
        {1: "not JSON: the call in message 2, 'call f'"},
    ),
    "an instruction without output": (
        [{"instruction": "a", "output": "b"}, {"instruction": "a"}],
        {2: "missing column 'output'; the row has instruction"},
    ),
    "output null": (
        [{"instruction": "a", "output": "b"}, {"instruction": "a", "output": None}],
        {2: "null in column 'output'"},
    ),
    "output empty": (
        [{"instruction": "a", "output": "b"}, {"instruction": "a", "output": " "}],
        {2: "empty answer in column 'output'"},
    ),
    "output a list": (
        [{"instruction": "a", "output": "b"}, {"instruction": "a", "output": ["x", 1]}],
        {2: "a part of the column 'output' is a number"},
    ),
    "no question at all": (
        [{"instruction": "a", "output": "b"}, {"instruction": " ", "input": "", "output": "b"}],
        {2: "empty question in column 'instruction'"},
    ),
    "history of triples": (
        [{"instruction": "a", "output": "b", "history": [["x", "y", "z"]]}],
        {1: "history is not pairs: entry 1 is a list"},
    ),
    "history of texts": (
        [{"instruction": "a", "output": "b", "history": ["x"]}],
        {1: "history is not pairs: entry 1 is text"},
    ),
    "two outputs": (
        [{"instruction": "a", "output": "b", "response": "c"}],
        {1: "contradicting columns: output and response differ"},
    ),
    "two inputs": (
        [{"instruction": "a", "input": "x", "context": "y", "output": "b"}],
        {1: "contradicting columns: input and context differ"},
    ),
    "a prompt without messages": ([{"prompt": [], "completion": "b"}], {1: "empty question in column 'prompt'"}),
    "a completion by the user": (
        [{"prompt": "a", "completion": [{"role": "user", "content": "b"}]}],
        {1: "no assistant turn in column 'completion'"},
    ),
    "a completion null": (
        [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}],
        {2: "null in column 'completion'"},
    ),
    "an answer of choices": (
        [{"question": "a", "answer": "b"}, {"question": "a", "answer": {"text": ["b"]}}],
        {2: "not text: the column 'answer' is an object"},
    ),
    "an empty text": ([{"text": "a"}, {"text": "\n"}], {2: "empty text in column 'text'"}),
    "a text that is a list": ([{"text": "a"}, {"text": {"a": 1}}], {2: "not text: the column 'text' is an object"}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_broken_row_of_another_format_is_reported(name: str, tmp_path: Path) -> None:
    rows, expected = FORMATS[name]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    good, bad = problems(path)
    assert good == len(rows) - len(expected)
    assert list(bad) == [f"rows.json row {number}" for number in expected]
    assert all(reason in bad[f"rows.json row {number}"] for number, reason in expected.items())


# Files whose rows can be told apart: {name: (file name, bytes, rows that are read, {place: reason})}
ROW = json.dumps(GOOD)
FILES: dict[str, tuple[str, bytes, int, dict[str, str]]] = {
    "a broken element in an array": (
        "a.json",
        f'[{ROW},\n {{"text": }},\n {ROW}]'.encode(),
        2,
        {"a.json row 2": "broken JSON: Expecting value"},
    ),
    "a key twice in an array": (
        "a.json",
        f'[{ROW}, {{"a": 1, "a": 2}}]'.encode(),
        1,
        {"a.json row 2": "duplicate key 'a'"},
    ),
    "a deep element in an array": (
        "a.json",
        f'[{ROW}, {{"a": {DEEP}}}, {ROW}]'.encode(),
        2,
        {"a.json row 2": "nested too deeply"},
    ),
    "nulls in an array": (
        "a.json",
        f"[null, {ROW}]".encode(),
        1,
        {"a.json row 1": "the row is not an object but null"},
    ),
    "an unknown word in an array": ("a.json", f"[{ROW}, None, {ROW}]".encode(), 2, {"a.json row 2": "broken JSON"}),
    "invalid UTF-8 in an array": (
        "a.json",
        b'[{"text": "a"}, {"text": "\xff"}, {"text": "c"}]',
        2,
        {"a.json row 2": "invalid UTF-8"},
    ),
    "blank lines count": ("a.jsonl", lines(GOOD, "", "   ", "x", GOOD), 2, {"a.jsonl row 4": "broken JSON"}),
    "JSON lines named .json": ("a.json", lines(GOOD, "x", GOOD), 2, {"a.json row 2": "broken JSON"}),
    "a short record": (
        "a.csv",
        b"instruction,output\na,b\nc\n",
        1,
        {"a.csv row 2 (line 3)": "wrong number of fields: 1 where the header has 2"},
    ),
    "a long record after one of three lines": (
        "a.csv",
        b'instruction,output\na,"b\nb\nb"\nc,d,e\nf,g\n',
        2,
        {"a.csv row 2 (line 5)": "wrong number of fields: 3 where the header has 2"},
    ),
    "text after a quote": ("a.csv", b'instruction,output\n"a"x,b\nc,d\n', 1, {"a.csv row 1 (line 2)": "broken CSV"}),
    "invalid UTF-8 in a table": (
        "a.csv",
        b"instruction,output\na,b\n\xff,d\n",
        1,
        {"a.csv row 2 (line 3)": "invalid UTF-8"},
    ),
    "an empty cell": (
        "a.csv",
        b"instruction,output\na,b\nc,\n",
        1,
        {"a.csv row 2 (line 3)": "empty answer in column 'output'"},
    ),
    "messages as Python prints them": (
        "a.csv",
        b"messages\n\"[{'role': 'user', 'content': 'x'}]\"\n",
        0,
        {"a.csv row 1 (line 2)": "not JSON: the column 'messages'"},
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_broken_row_of_a_file_is_reported(name: str, tmp_path: Path) -> None:
    file, content, good, expected = FILES[name]
    (tmp_path / file).write_bytes(content)
    found, bad = problems(tmp_path / file)
    assert found == good and list(bad) == list(expected)
    assert all(reason in bad[place] for place, reason in expected.items())


def _cut(compressed: bytes) -> bytes:
    return compressed[:-7]


BIG = lines(*[GOOD] * 2000)
# Files that cannot be read to their end, where going on would lose rows unseen: {name: (file name, bytes, message)}
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "an empty file": ("a.jsonl", b"", "has no rows"),
    "blank lines alone": ("a.jsonl", b"\n\n  \n", "has no rows"),
    "an empty array": ("a.json", b"[]", "has no rows"),
    "an array cut off in a row": ("a.json", f"[{ROW}, {ROW[:40]}".encode(), "a.json row 2 (line 1): broken JSON"),
    "an array cut off after a row": (
        "a.json",
        f"[{ROW},\n {ROW}".encode(),
        "a.json row 2 (line 2): the file ends early",
    ),
    "a comma missing in an array": ("a.json", f"[{ROW}\n {ROW}]".encode(), "a.json row 1 (line 1): a comma is missing"),
    "text after the array": ("a.json", f"[{ROW}] end".encode(), "a.json row 1 (line 1): "),
    "one broken object": ("a.json", b'{"messages": [}', "a.json: broken JSON: Expecting value at line 1, column 15"),
    "UTF-16": ("a.jsonl", lines(GOOD).decode().encode("utf-16"), "the file is UTF-16"),
    "UTF-16 in a table": ("a.csv", "instruction,output\na,b\n".encode("utf-16"), "the file is UTF-16"),
    "gzip cut off": ("a.jsonl.gz", _cut(gzip.compress(BIG)), "the file ends early"),
    "no gzip": ("a.jsonl.gz", lines(GOOD), "cannot be decompressed"),
    "zstd cut off": ("a.jsonl.zst", _cut(zstandard.compress(BIG)), "the file ends early"),
    "no zstd": ("a.jsonl.zst", lines(GOOD), "cannot be read: zstd"),
    "not Parquet": ("a.parquet", lines(GOOD), "is not an intact Parquet file"),
    "not Arrow": ("a.arrow", lines(GOOD), "is not an intact Arrow file"),
    "a quote that never closes": (
        "a.csv",
        b'instruction,output\na,b\n"c,d\ne,f\n',
        "a.csv row 2 (line 3): a quote opens here",
    ),
    "a column twice": ("a.csv", b"output,output\na,b\n", "the header names 'output' twice"),
    "an unsupported file type": ("a.xlsx", b"PK", "has no file type that can be read"),
    "columns of no format": ("a.jsonl", lines({"foo": "a", "bar": "b"}), "its columns are foo, bar"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_completely_is_refused(name: str, tmp_path: Path) -> None:
    file, content, message = REFUSED[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError) as caught:
        problems(tmp_path / file)
    assert message in str(caught.value) and file in str(caught.value)


def test_a_very_long_line_is_read(tmp_path: Path) -> None:
    long = "x" * 5_000_000
    (tmp_path / "a.jsonl").write_bytes(lines(chat({"role": "user", "content": long}, A), "{" + long, GOOD))
    good, bad = problems(tmp_path / "a.jsonl")
    assert good == 2 and list(bad) == ["a.jsonl row 2"] and len(bad["a.jsonl row 2"]) < 200


def test_all_broken_rows_are_listed(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(lines(GOOD, chat(U), {"messages": 7}, "not json"))
    good, bad = problems(tmp_path / "bad.jsonl")
    assert good == 1 and list(bad) == ["bad.jsonl row 2", "bad.jsonl row 3", "bad.jsonl row 4"]


def test_more_than_sixty_kinds_of_broken_input_are_tested() -> None:
    def names() -> Iterator[str]:
        yield from (*LINES, *FORMATS, *FILES, *REFUSED)

    assert len(list(names())) > 60
