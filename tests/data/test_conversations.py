"""The system message that a dataset's conversations share."""

from __future__ import annotations

import pytest

from sft.data.conversations import common_system


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
def test_it_is_there_where_all_begin_with_it(conversations, wanted):
    assert common_system(conversations) == wanted
