"""Conversations read again from their source, and the system message that they share."""

from __future__ import annotations

import pytest

from sft.config.errors import UserError
from sft.data.conversations import common_system, conversations_of
from sft.data.pipeline import prepare


def chat(system: str | None) -> dict:
    head = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*head, {"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("conversations", "wanted"),
    [
        ([chat("a"), chat("a")], "a"),
        ([chat("a"), chat("b")], None),
        ([chat("a"), chat(None)], None),
        ([chat(None)], None),
        ([chat("")], None),
        ([{"text": "raw"}], None),
        ([], None),
    ],
)
def test_a_shared_system_message_is_found_if_all_conversations_begin_with_it(conversations, wanted):
    assert common_system(conversations) == wanted


def test_consecutive_assistant_messages_follow_the_datasets_policy(word_encoder, settings, write):
    said = [("user", "q"), ("assistant", "a"), ("assistant", "b")]
    row = {"messages": [{"role": role, "content": content} for role, content in said]}
    sources = {"main": {"path": write("main.jsonl", [row, row])}}
    with pytest.raises(UserError, match=r"messages 2 and 3; dataset\.consecutive=merge makes them one turn"):
        prepare(settings(sources, cache=False), word_encoder(), seed=0)
    dataset = settings(sources, consecutive="merge", cache=False)
    prepared = prepare(dataset, word_encoder(), seed=0)
    assert prepared.report["sources"]["main"]["notes"] == {
        "merged_messages": {"assistant messages in a row": {"count": 2, "first": "main.jsonl row 1"}}
    }
    found = conversations_of(prepared.train, dataset.sources["main"], "main", "dataset.sources.main", dataset)
    assert [message["content"] for message in found[0]["messages"]] == ["q", "a\nb"]
