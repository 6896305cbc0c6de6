"""Any format, any family: the trained contents are those that the file marks as trained, and unread keys are counted."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft.data.encode import RowEncoder
from sft.data.formats import recognise
from sft.data.formats.marks import SWITCHES, WEIGHTS
from sft.data.labels.encoder import Encoder
from sft.data.source import Source
from sft.template.bind import bind
from sft.template.candidates import packaged_templates
from sft.template.families import by_template
from sft.template.spec import Template

WORDS = st.lists(
    st.sampled_from(["It", "is", "four", "Be", "brief", "日本", "e\u0301", "'q\"", "\n", "😀", "<b>"]),
    min_size=1,
    max_size=4,
)
TEXT = WORDS.map(" ".join).filter(lambda text: text.strip() == text)
UNREAD = st.dictionaries(
    st.sampled_from(["sparkle", "id", "meta", "score"]), st.sampled_from([1, "x", ["y"]]), max_size=2
)
MARK = st.sampled_from([*SWITCHES, *WEIGHTS])


@st.composite
def turns(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Questions and answers, each answer with whether it is trained, a mark that says so, and ignored keys."""
    made = [
        {"asked": draw(TEXT), "told": draw(TEXT), "on": draw(st.booleans()), "mark": draw(MARK), "more": draw(UNREAD)}
        for _ in range(draw(st.integers(1, 3)))
    ]
    made[-1]["on"] = True
    return made


def marked(turn: dict[str, Any]) -> dict[str, Any]:
    """The turn's mark: none for some of the turns that are trained."""
    if turn["mark"] is None:
        return {}
    value = int(turn["on"]) if turn["mark"] in WEIGHTS else turn["on"]
    return {} if turn["on"] and len(turn["told"]) % 2 else {turn["mark"]: value}


def of_messages(turns: list[dict[str, Any]], role: str = "role", content: str = "content") -> list[dict[str, Any]]:
    names = ("human", "gpt") if role == "from" else ("user", "assistant")
    return [
        message
        for turn in turns
        for message in (
            {role: names[0], content: turn["asked"]},
            {role: names[1], content: turn["told"], **marked(turn), **turn["more"]},
        )
    ]


def plain(turns: list[dict[str, Any]]) -> list[list[str]]:
    return [[turn["asked"], turn["told"]] for turn in turns]


# {format: turns -> (row, whether marks of single turns and unread keys of messages are in it)}
ROWS: dict[str, Any] = {
    "messages": lambda turns: ({"messages": of_messages(turns)}, True),
    "JSON text": lambda turns: ({"messages": json.dumps(of_messages(turns))}, True),
    "ShareGPT": lambda turns: ({"conversations": of_messages(turns, "from", "value")}, True),
    "pairs": lambda turns: (
        {"conversation": [{"human": t["asked"], "assistant": t["told"], **marked(t), **t["more"]} for t in turns]},
        True,
    ),
    "text parts": lambda turns: (
        {"messages": [{**m, "content": [{"type": "text", "value": m["content"]}]} for m in of_messages(turns)]},
        True,
    ),
    "a completion of messages": lambda turns: (
        {"prompt": of_messages(turns)[:1], "completion": of_messages(turns)[1:]},
        True,
    ),
    "a mark for each message": lambda turns: (
        {
            "messages": of_messages([{**turn, "on": True, "told": turn["told"], "mark": None, "more": {}} for turn in turns]),
            "loss_mask": [mark for turn in turns for mark in (0, int(turn["on"]))],
        },
        None,
    ),
    "instruction": lambda turns: (
        {"instruction": turns[-1]["asked"], "output": turns[-1]["told"], "history": plain(turns[:-1])},
        False,
    ),
    "input": lambda turns: ({"input": turns[-1]["asked"], "output": turns[-1]["told"], "history": plain(turns[:-1])}, False),
    "prompt": lambda turns: (
        {"prompt": turns[-1]["asked"], "completion": turns[-1]["told"], "history": plain(turns[:-1])},
        False,
    ),
    "question": lambda turns: (
        {"question": turns[-1]["asked"], "answer": turns[-1]["told"], "history": plain(turns[:-1])},
        False,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tokenizer):
    @cache
    def of(name: str) -> Encoder:
        family = by_template(name)
        tokens = (*family.control_tokens, *family.stop_tokens) if family else ()
        tok = tokenizer(tokens, eos=family.stop_tokens[0] if family else "</s>")
        return Encoder(bind(Template(name=name), tok), tok)

    return of


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    template=st.sampled_from(packaged_templates()),
    form=st.sampled_from(list(ROWS)),
    turns=turns(),
    more=st.dictionaries(st.sampled_from(["source", "uuid"]), st.just(1), max_size=2),
)
def test_marked_turns_are_trained_and_ignored_keys_are_counted(encoder, template, form, turns, more):
    row, by_turn = ROWS[form](turns)
    made = encoder(template)
    converter = recognise(Source(path="x.jsonl"), [{**row, **more}], "dataset.sources.local")
    chunk = RowEncoder(converter, made)([{**row, **more}])
    assert chunk.failures == []
    expected = [turn["told"] for turn in turns if turn["on"] or by_turn is False]
    text = made.tokenizer.decode(chunk.columns["input_ids"][chunk.columns["trained"].astype(bool)])
    conversation = converter.to_conversation({**row, **more})
    rows = made.encode([conversation])[0]["rows"]
    assert text == "".join(piece for one in rows for piece in one["trained_text"])
    pieces = [piece for one in rows for piece in one["trained_text"]]
    assert Counter(_words(made, piece) for piece in pieces) == Counter(expected)
    keys = Counter(key for turn in turns for key in turn["more"]) if by_turn else Counter()
    notes = {kind: {name: count for name, (count, _) in named.items()} for kind, named in chunk.notes.counts.items()}
    assert notes == {
        **({"unread_message_keys": dict(keys)} if keys else {}),
        **({"unread_columns": dict(more)} if more else {}),
    }


def _words(made: Encoder, piece: str) -> str:
    """A trained piece without its stop token, the channel or the empty think block before it, and space around."""
    stop = next(stop for stop in made.bound.stop_tokens if piece.endswith(stop))
    return piece.removesuffix(stop).rpartition("<|message|>")[2].rpartition("</think>")[2].strip()
