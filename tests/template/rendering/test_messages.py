"""Marks do not change a text and locate the other roles' contents."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sft.template.rendering.messages import Marked, Style, holds_marks, plain_messages, read_marks, reasoning_of

TEXT = st.text(st.characters(blacklist_categories=("Cs", "Co")), max_size=30)


@given(st.lists(st.tuples(st.sampled_from(["user", "system", "tool", "assistant"]), TEXT), max_size=6))
def test_marks_locate_each_content(turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    text = "|".join(message["content"] for message in plain_messages(messages, marks=True))
    marked = read_marks(text)
    assert marked is not None
    assert marked.text == "|".join(content for _, content in turns)
    expected = {i: content.strip() for i, (role, content) in enumerate(turns) if role != "assistant" and content}
    assert {index: marked.text[start:end] for index, start, end in marked.regions} == expected


@given(TEXT)
def test_marks_do_not_change_trimming(content):
    (plain,), (marked,) = (
        plain_messages([{"role": "user", "content": content}], marks=marks) for marks in (False, True)
    )
    found = read_marks(marked["content"].strip())
    assert found is not None and found.text.strip() == plain["content"].strip()


def test_an_incomplete_pair_of_marks_is_ignored():
    (message,) = plain_messages([{"role": "user", "content": "hello"}], marks=True)
    assert read_marks(message["content"][:-1]) is None
    assert read_marks(message["content"][1:]) is None


def test_contents_with_mark_characters_are_detected():
    assert holds_marks([{"role": "user", "content": "a\U00100000b"}])
    assert not holds_marks([{"role": "user", "content": "a\ue000b"}, {"role": "assistant", "content": None}])


def test_before_and_after_are_the_nearest_contents():
    marked = Marked("abcdefgh", ((0, 1, 2), (2, 4, 6)))
    assert (marked.before(1), marked.after(1)) == (2, 4)
    assert (marked.before(0), marked.after(2)) == (0, 8)


def test_styles():
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    said = {"role": "assistant", "content": "", "tool_calls": [call]}
    style = Style(parts=True, null_content=True, json_arguments=True)
    user, called = plain_messages([{"role": "user", "content": "x"}, said], style)
    assert user["content"] == [{"type": "text", "text": "x"}]
    assert called["content"] is None
    assert called["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    thought = {"role": "assistant", "content": "y", "reasoning_content": "z"}
    (folded,) = plain_messages([thought], Style(fold_reasoning=True))
    assert folded == {"role": "assistant", "content": "<think>\nz\n</think>\n\ny"}
    (named,) = plain_messages([thought])
    assert named["thinking"] == named["reasoning_content"] == "z"


def test_a_system_message_is_added_if_there_is_none():
    given_one = [{"role": "system", "content": "mine"}, {"role": "user", "content": "x"}]
    assert plain_messages(given_one, system="other")[0]["content"] == "mine"
    added = plain_messages(given_one[1:], system="other", marks=True)
    assert added[0] == {"role": "system", "content": "other"}
    assert read_marks(added[1]["content"]) == Marked("x", ((0, 0, 1),))


def test_reasoning_is_a_field_or_a_think_block():
    assert reasoning_of({"content": "a", "reasoning_content": "b"}) == "b"
    assert reasoning_of({"content": "<think>\nb\n</think>\n\na"}).strip() == "b"
    assert reasoning_of({"content": "b</think>a"}) == "b"
    assert reasoning_of({"content": "a"}) == "" == reasoning_of({"content": None})
