"""Every accepted format is converted to the same conversation."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.config.errors import UserError
from sft.data.formats import FORMATS, Converter, RowError, recognise
from sft.data.report.notes import collected
from sft.data.source import Source

WHERE = "dataset.sources.local"


def converter(*rows: Any, use_text_column: bool = False, **options: Any) -> Converter:
    return recognise(Source(path="x.jsonl", **options), rows, WHERE, use_text_column=use_text_column)


def convert(row: Any, **options: Any) -> dict[str, Any]:
    return converter(row, **options).to_conversation(row)


def chat(*turns: str) -> list[dict[str, str]]:
    roles = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


QA = chat("u:hi", "a:hello")
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}

# {name: (row, messages)}
ROWS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "messages": ({"messages": QA}, QA),
    "messages with other columns": ({"messages": QA, "id": 3, "prompt": "hi"}, QA),
    "text parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
                QA[1],
            ]
        },
        QA,
    ),
    "developer": ({"messages": [{"role": "developer", "content": "s"}, *QA]}, [*chat("s:s"), *QA]),
    "a system column": ({"messages": QA, "system": "s"}, [*chat("s:s"), *QA]),
    "the same system twice": ({"messages": [*chat("s:s"), *QA], "system": "s"}, [*chat("s:s"), *QA]),
    "JSON text, as in a table": ({"messages": json.dumps(QA)}, QA),
    "lists by key, as in old tables": ({"messages": {"role": ["user", "assistant"], "content": ["hi", "hello"]}}, QA),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}, QA),
    "ShareGPT, user and assistant": (
        {"conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "hello"}], "system": ""},
        QA,
    ),
    "ShareGPT with null weights": (
        {"conversations": [{"from": "human", "value": "hi", "weight": None}, {"from": "gpt", "value": "hello"}]},
        QA,
    ),
    "instruction": ({"instruction": "hi", "input": "", "output": "hello"}, QA),
    "instruction and input": ({"instruction": "h", "input": "i", "output": "hello"}, chat("u:h\ni", "a:hello")),
    "input alone": ({"instruction": "", "input": "hi", "output": "hello"}, QA),
    "instruction, context, response": (
        {"instruction": "h", "context": "i", "response": "hello"},
        chat("u:h\ni", "a:hello"),
    ),
    "Alpaca with its text": ({"instruction": "hi", "input": "", "output": "hello", "text": "### hi"}, QA),
    "history": (
        {"instruction": "hi", "output": "hello", "history": [["a", "b"], ["c", "d"]], "system": "s"},
        [*chat("s:s", "u:a", "a:b", "u:c", "a:d"), *QA],
    ),
    "history as text": (
        {"instruction": "hi", "output": "hello", "history": '[["a", "b"]]'},
        [*chat("u:a", "a:b"), *QA],
    ),
    "no history": ({"instruction": "hi", "output": "hello", "history": []}, QA),
    "prompt and completion": ({"prompt": "hi", "completion": "hello"}, QA),
    "prompt and response": ({"prompt": "hi", "response": "hello", "system": "s"}, [*chat("s:s"), *QA]),
    "lists of messages": ({"prompt": QA[:1], "completion": QA[1:]}, QA),
    "one message each": ({"prompt": QA[:1], "completion": QA[1]}, QA),
    "earlier answers in the prompt": (
        {"prompt": chat("u:a", "a:b", "u:hi"), "completion": "hello"},
        [chat("u:a")[0], {"role": "assistant", "content": "b", "train": False}, *QA],
    ),
    "question and answer": ({"question": "hi", "answer": "hello"}, QA),
    "query and response": ({"query": "hi", "response": "hello", "system_prompt": "s"}, [*chat("s:s"), *QA]),
    "contents as they stand": ({"prompt": " hi\n", "completion": "\n\thello "}, chat("u: hi\n", "a:\n\thello ")),
    "flags": (
        {"messages": [QA[0], {**QA[1], "train": False}, QA[0], {**QA[1], "weight": 1}]},
        [QA[0], {**QA[1], "train": False}, QA[0], {**QA[1], "weight": 1}],
    ),
    "reasoning": (
        {"messages": [QA[0], {**QA[1], "reasoning_content": "r", "id": 7}]},
        [QA[0], {**QA[1], "reasoning_content": "r"}],
    ),
    "an empty answer that is not trained": (
        {"messages": [QA[0], {"role": "assistant", "content": "", "train": False}, *QA]},
        [QA[0], {"role": "assistant", "content": "", "train": False}, *QA],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_the_expected_conversation(name: str) -> None:
    row, messages = ROWS[name]
    before = json.dumps(row)
    assert convert(row) == {"messages": messages}
    assert json.dumps(row) == before, "the row itself is not touched"


CALLS: dict[str, dict[str, Any]] = {
    "OpenAI": {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
    },
    "OpenAI's older one": {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "f", "arguments": '{"x": 1}'},
    },
    "arguments as an object": {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
    "name and arguments": {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]},
    "tool and parameters": {"role": "assistant", "content": "", "tool_calls": [{"tool": "f", "parameters": {"x": 1}}]},
    "tool_name": {"role": "assistant", "content": "", "tool_calls": [{"tool_name": "f", "arguments": '{"x": 1}'}]},
    "calls as JSON text": {"role": "assistant", "content": "", "tool_calls": '[{"name": "f", "arguments": {"x": 1}}]'},
    "on the message": {"role": "assistant", "tool": "f", "parameters": {"x": 1}},
    "tool_name on the message": {"role": "assistant", "tool_name": "f", "parameters": {"x": 1}},
    "as the content": {"role": "assistant", "content": {"tool": "f", "parameters": {"x": 1}}},
    "ShareGPT": {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
    "ShareGPT, arguments as text": {"from": "function_call", "value": '{"name": "f", "arguments": "{\\"x\\": 1}"}'},
    "ShareGPT, a list": {"from": "function_call", "value": '[{"name": "f", "arguments": {"x": 1}}]'},
    "ShareGPT, tool and parameters": {"from": "function_call", "value": '{"tool": "f", "parameters": {"x": 1}}'},
}


@pytest.mark.parametrize("name", CALLS)
def test_a_tool_call_in_any_shape_is_the_same_call(name: str) -> None:
    column = "conversations" if "from" in CALLS[name] else "messages"
    row = {column: [chat("u:hi")[0], CALLS[name], {"role": "tool", "content": "1"}, QA[1]]}
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert convert(row) == {"messages": [QA[0], called, *chat("t:1"), QA[1]]}


def test_a_completion_may_be_a_call() -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert convert({"prompt": "hi", "completion": {"tool": "f", "parameters": {"x": 1}}}) == {
        "messages": [QA[0], called]
    }


def test_ids_and_names_of_calls_and_results_are_kept() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": "c1", "tool_name": "f", "content": {"ok": "ä"}}
    row = {"messages": [QA[0], {"role": "assistant", "content": "so", "tool_calls": [call]}, result, QA[1]]}
    assert convert(row)["messages"][1:3] == [
        {
            "role": "assistant",
            "content": "so",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}, "id": "c1"}],
        },
        {"role": "tool", "content": '{"ok": "ä"}', "tool_call_id": "c1", "name": "f"},
    ]


@pytest.mark.parametrize("role", ["tool", "observation", "function", "ipython"])
def test_a_tool_result_has_one_role(role: str) -> None:
    row = {"messages": [QA[0], CALLS["OpenAI"], {"role": role, "content": ""}, QA[1]]}
    assert convert(row)["messages"][2] == {"role": "tool", "content": ""}


TOOLS: dict[str, Any] = {
    "OpenAI": [TOOL],
    "bare": [TOOL["function"]],
    "JSON text": json.dumps([TOOL["function"]]),
    "one tool": TOOL,
    "each as JSON text": [json.dumps(TOOL)],
    "tool_name": [{"tool_name": "f", "description": "d", "parameters": {"type": "object"}}],
    "parameters as JSON text": [{"name": "f", "description": "d", "parameters": '{"type": "object"}'}],
}


@pytest.mark.parametrize("name", TOOLS)
def test_tools_in_any_shape_are_the_same_tools(name: str) -> None:
    assert convert({"messages": QA, "tools": TOOLS[name]}) == {"messages": QA, "tools": [TOOL]}


@pytest.mark.parametrize("nothing", [None, "", "[]", []])
def test_an_empty_tool_list_means_no_tools(nothing: Any) -> None:
    assert convert({"messages": QA, "tools": nothing}) == {"messages": QA}


def test_raw_text_is_kept_exactly() -> None:
    assert convert({"text": " once\n"}) == {"text": " once\n"}


def test_the_format_is_that_of_most_rows_and_the_others_are_reported() -> None:
    rows = [{"question": "q", "answer": "a"}] * 2 + [{"messages": QA}] * 3 + [{"text": "x"}]
    found = converter(*rows)
    assert (found.format, found.named) == ("messages", False)
    with pytest.raises(RowError, match="another format: question_answer, where the source's rows are messages"):
        found.to_conversation(rows[0])
    with pytest.raises(RowError, match="another format: text"):
        found.to_conversation(rows[-1])


def test_an_unusual_first_row_does_not_determine_the_format() -> None:
    rows = [{"messages": None, "instruction": "x"}, *[{"messages": None, "instruction": "i", "output": "o"}] * 4]
    assert converter(*rows).format == "instruction"


def test_an_explicit_format_reads_only_its_own_columns() -> None:
    row = {"messages": QA, "prompt": "hi", "completion": "another"}
    assert convert(row, format="prompt_completion") == {"messages": chat("u:hi", "a:another")}
    assert convert(row, format="openai") == {"messages": QA}
    with pytest.raises(RowError, match="contradicting columns"):
        convert(row)


def test_equal_duplicate_columns_are_accepted() -> None:
    assert convert({"messages": QA, "prompt": "hi", "completion": "hello "}) == {"messages": QA}
    assert convert({"instruction": "hi", "output": "hello", "prompt": "### hi"}) == {"messages": QA}


def test_an_unknown_format_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"there is no format 'sharegtp'\n  -> did you mean sharegpt\?"):
        converter({"text": "x"}, format="sharegtp")


def test_columns_are_mapped_to_ours() -> None:
    row = {"ask": "hi", "meta": {"gold": "hello"}, "output": "not this", "response": "nor this"}
    columns = {"instruction": "ask", "output": "meta.gold", "response": "output"}
    with pytest.raises(RowError, match="contradicting columns: output and response differ"):
        convert(row, columns=columns)
    del row["response"]
    assert convert(row, columns={"instruction": "ask", "output": "meta.gold"}) == {"messages": QA}
    assert convert({"chat": QA}, columns={"messages": "chat"}) == {"messages": QA}
    assert convert({"answer": "short", "response": "hello", "question": "hi"}, columns={"answer": "response"}) == {
        "messages": QA
    }


def test_a_mapped_column_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        converter({"question": "hi", "answer": "hello"}, columns={"instruction": "questions"})
    assert "dataset.sources.local.columns.instruction: no row has a column questions" in str(caught.value)
    assert "did you mean question?" in str(caught.value)
    with pytest.raises(
        UserError, match=r"instructon is not a column that a format reads\n  -> did you mean instruction\?"
    ):
        converter({"question": "hi"}, columns={"instructon": "question"})


def test_unused_columns_are_reported() -> None:
    row = {"question": "q", "answer": "a", "context": "c", "id": 1, "empty": None}
    with collected() as notes:
        convert(row)
    assert notes == [("unread_columns", "context"), ("unread_columns", "id")]


def test_use_text_column_prefers_the_column_and_otherwise_renders_messages() -> None:
    both = {"messages": QA, "text": "<hi>"}
    found = converter(both, use_text_column=True)
    assert (found.to_conversation(both), found.as_text) == ({"text": "<hi>"}, False)
    found = converter({"messages": QA}, use_text_column=True)
    assert (found.to_conversation({"messages": QA}), found.as_text) == ({"messages": QA}, True)
    assert converter(both).as_text is False


def shout(row: dict[str, Any], mark: str = "!") -> dict[str, Any] | None:
    """A user's function, as `convert` names it."""
    if row["n"] == 0:
        return None
    if row["n"] < 0:
        raise KeyError("n")
    return {"prompt": f"n={row['n']}", "completion": mark * row["n"]} if row["n"] < 9 else [row]  # type: ignore[return-value]


def test_a_users_function_converts_rows() -> None:
    found = converter({"n": 2}, convert=shout)
    assert found.format == "convert"
    assert found.to_conversation({"n": 2}) == {"messages": chat("u:n=2", "a:!!")}
    with pytest.raises(RowError, match="left out by convert") as caught:
        found.to_conversation({"n": 0})
    assert caught.value.broken is False
    with pytest.raises(RowError, match="convert failed: KeyError: 'n'") as caught:
        found.to_conversation({"n": -1})
    assert caught.value.broken is True
    with pytest.raises(RowError, match="convert gave no conversation but a list"):
        found.to_conversation({"n": 9})


def test_a_users_function_is_named_by_target_with_its_arguments_bound() -> None:
    found = converter({"a": 1}, convert={"_target_": "builtins.dict", "text": "so"})
    assert found.to_conversation({"a": 1}) == {"text": "so"}
    with pytest.raises(UserError, match="is not a function"):
        converter({"a": 1}, convert=[1])


def test_converters_and_errors_cross_process_borders() -> None:
    found = pickle.loads(pickle.dumps(converter({"messages": QA})))
    assert found.to_conversation({"messages": QA}) == {"messages": QA}
    error = pickle.loads(pickle.dumps(RowError("unknown role", " 'x'", broken=False)))
    assert (error.kind, error.reason, error.broken) == ("unknown role", "unknown role 'x'", False)


def test_the_fingerprint_covers_everything_the_conversion_depends_on() -> None:
    rows = [{"messages": QA, "prompt": "hi", "completion": "hello", "text": "t"}]
    found = [
        converter(*rows),
        converter(*rows, format="prompt_completion"),
        converter(*rows, columns={"system": "text"}),
        converter(*rows, use_text_column=True),
        converter(*rows, convert=shout),
        converter(*rows, convert={"_target_": "builtins.dict"}),
        converter(*rows, convert={"_target_": "builtins.dict", "a": 1}),
    ]
    assert len({each.fingerprint for each in found}) == len(found)
    assert converter(*rows).fingerprint == found[0].fingerprint


# Properties

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    lambda text: bool(text.strip())
)
conversations = st.lists(st.tuples(texts, texts), min_size=1, max_size=4)


@given(conversations, st.none() | texts)
def test_one_conversation_in_any_format_is_the_same(pairs: list[tuple[str, str]], system: str | None) -> None:
    plain = [message for ask, tell in pairs for message in chat(f"u:{ask}", f"a:{tell}")]
    expected = {"messages": ([{"role": "system", "content": system}] if system else []) + plain}
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    *history, (ask, tell) = [list(pair) for pair in pairs]
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in (m["content"] for m in expected["messages"])]
    parts = [[{"type": "text", "text": half} for half in both] for both in halves]
    forms = [
        expected,
        {"messages": plain, "system": system},
        {"messages": json.dumps(expected["messages"])},
        {"messages": [{**m, "content": c} for m, c in zip(expected["messages"], parts, strict=True)]},
        {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in expected["messages"]]},
        {"instruction": ask, "output": tell, "history": history, "system": system},
    ]
    for row in forms:
        assert convert(row) == expected


WORDS = sorted(set().union(*(form.columns for form in FORMATS.values())) | {"role", "content", "from", "value", "name"})
WORDS += ["tool_calls", "function", "arguments", "train", "weight", "type", "images"]
atoms = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
atoms |= st.sampled_from(
    ["user", "assistant", "human", "gpt", "tool", "function_call", "system", "[]", '{"name": "f"}']
)
values = st.recursive(
    atoms,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)
rows_of_anything = st.dictionaries(st.sampled_from(WORDS), values, min_size=1, max_size=4)


@settings(max_examples=150)
@given(st.lists(rows_of_anything, min_size=1, max_size=3), st.sampled_from(["auto", *FORMATS]))
def test_any_row_becomes_a_conversation_or_gets_a_reason(rows: list[dict[str, Any]], form: str) -> None:
    try:
        found = converter(*rows, format=form)
    except UserError:
        return
    for row in rows:
        try:
            conversation = found.to_conversation(row)
        except RowError as error:
            assert error.reason.startswith(error.kind)
            continue
        json.dumps(conversation, allow_nan=False).encode()
        if "text" in conversation:
            assert conversation["text"].strip()
            continue
        assert conversation["messages"][-1]["role"] == "assistant"
        for message in conversation["messages"]:
            assert message["role"] in ("system", "user", "assistant", "tool") and type(message["content"]) is str
