"""Any contents, any family: exactly the answers are trained, and typed control tokens never become real ones."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft.data.labels.encoder import Encoder
from sft.template.bind import bind
from sft.template.candidates import packaged_templates
from sft.template.families import by_template
from sft.template.spec import Template

MANY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
EDGES = st.text(st.sampled_from(" \n\t"), max_size=3)
WORDS = st.lists(
    st.sampled_from(["return x", "é", "日本", "<b>", "[1]", "{{ x }}", "4\n\n5", "😀"]), min_size=1, max_size=3
)
ANSWERS = st.tuples(EDGES, WORDS, EDGES)


@pytest.fixture(scope="module")
def encoder(tokenizer):
    @cache
    def of(template, control_tokens):
        family = by_template(template)
        tokens = (*family.control_tokens, *family.stop_tokens) if family else ()
        tok = tokenizer(tokens, eos=family.stop_tokens[0] if family else "</s>")
        tok.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
        return Encoder(bind(Template(name=template), tok), tok, control_tokens=control_tokens)

    return of


@pytest.mark.parametrize("template", packaged_templates())
@MANY
@given(data=st.data())
def test_answers_are_trained_exactly_or_their_changes_are_counted(encoder, template, data):
    drawn = data.draw(st.lists(ANSWERS, min_size=1, max_size=3))
    answers = [f"{left}n{number}n{' '.join(words)}{right}" for number, (left, words, right) in enumerate(drawn)]
    messages = [
        message
        for text in answers
        for message in ({"role": "user", "content": "zq"}, {"role": "assistant", "content": text})
    ]
    (one,) = encoder(template, "refuse").encode([{"messages": messages}])
    assert one["problem"] is None
    said = "".join(text for row in one["rows"] for text in row["trained_text"])
    changed = sum(text not in said for text in answers)
    kinds = Counter(kind for kind, _ in one["notes"])
    counted = kinds["changed_contents"] + kinds["untrained_edges"]
    assert changed <= counted
    assert counted == 0 or any(text != text.strip() for text in answers)


@pytest.mark.parametrize("template", packaged_templates())
@MANY
@given(data=st.data())
def test_typed_control_tokens_are_ordinary_tokens(encoder, template, data):
    found = encoder(template, "text")
    tok, control = found.tokenizer, sorted(found.contents.control)
    typed = st.lists(st.sampled_from([*control, "a", " ", "<", "|>", "\n"]), min_size=1, max_size=4).map("".join)
    shown = [f"q{data.draw(typed)}q", f"a{data.draw(typed)}a", f"q{data.draw(typed)}q", f"a{data.draw(typed)}a"]
    roles = ["user", "assistant"] * 2
    plain = [{"role": role, "content": text[0]} for role, text in zip(roles, shown, strict=True)]
    messages = [{"role": role, "content": text} for role, text in zip(roles, shown, strict=True)]
    expected, one = found.encode([{"messages": plain}, {"messages": messages}])
    assert one["problem"] is None and len(one["rows"]) == len(expected["rows"])
    ids = set(tok.convert_tokens_to_ids(control))
    for row, other in zip(one["rows"], expected["rows"], strict=True):
        assert tok.decode(row["input_ids"]) == row["text"]
        assert [i for i in row["input_ids"] if i in ids] == [i for i in other["input_ids"] if i in ids]
        assert [i for i in row["labels"] if i in ids] == [i for i in other["labels"] if i in ids]
    said = "".join(text for row in one["rows"] for text in row["trained_text"])
    assert all(text in said for text in shown[1::2])
    found.check([{"messages": messages}])
    if any(token in text for token in control for text in shown):
        (refused,) = encoder(template, "refuse").encode([{"messages": messages}])
        assert refused["problem"].startswith("a control token in the text: ")
