"""Rendering equals transformers' rendering, in a sandbox."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from sft.template.rendering.messages import plain_messages
from sft.template.rendering.render import GENERATION_CLOSE, GENERATION_OPEN, RenderError, day, render

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def test_templates_render_as_transformers_renders_them(trl_templates, conversations):
    compared = 0
    for name, text in trl_templates.items():
        if name.endswith("_training") and not name.startswith("q"):
            continue  # much like the originals
        for conversation in conversations.values():
            messages, tools = conversation["messages"], conversation.get("tools")
            for prompt in (False, True):
                try:
                    (expected,), _ = render_jinja_template(
                        [messages], tools=tools, chat_template=text, add_generation_prompt=prompt, **TOKENS
                    )
                except Exception:
                    continue
                context = {**TOKENS, "tools": tools, "documents": None}
                given = [{**message} for message in messages]
                for message in given:
                    if "reasoning_content" in message:
                        message["thinking"] = message["reasoning_content"]
                assert render(text, given, context, prompt) == expected
                compared += 1
    assert compared > 400


def test_generation_marks_match_the_blocks_tracked_by_transformers(trl_templates, conversations):
    text, messages = trl_templates["qwen3_training"], conversations["multi"]["messages"]
    texts, spans = render_jinja_template([messages], chat_template=text, return_assistant_tokens_mask=True)
    expected = texts[0]
    marked = render(text, messages, {"tools": None}, generation_marks=True)
    blocks = [piece.split(GENERATION_CLOSE)[0] for piece in marked.split(GENERATION_OPEN)[1:]]
    assert blocks == [expected[start:end] for start, end in spans[0]]
    assert marked.replace(GENERATION_OPEN, "").replace(GENERATION_CLOSE, "") == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace(_x=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ raise_exception('no') }}",
        "{{ messages[0].missing.deeper }}",
        "{{ 1 / 0 }}",
        "{{ range(10 ** 9) }}",
    ],
)
def test_forbidden_operations_are_render_errors(text):
    with pytest.raises(RenderError):
        render(text, [{"role": "user", "content": "x"}], {})


def test_a_template_that_is_not_jinja_names_its_line():
    with pytest.raises(RenderError, match="line 2"):
        render("a\n{% for %}", [], {})


def test_the_reason_is_the_templates_own():
    with pytest.raises(RenderError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", [], {})


def test_the_date_can_be_set():
    assert render("{{ strftime_now('%d %b %Y') }}", [], day("2024-02-29")) == "29 Feb 2024"


def test_json_is_not_escaped_and_can_be_indented():
    text = "{{ messages | tojson(indent=2) }}"
    assert render(text, [{"content": "é<b>'"}], {}) == '[\n  {\n    "content": "é<b>\'"\n  }\n]'


def test_our_own_flags_and_empty_fields_do_not_reach_the_template():
    messages = [
        {"role": "user", "content": "x", "name": None},
        {"role": "assistant", "content": "y", "train": False, "weight": 0, "tool_calls": []},
    ]
    assert plain_messages(messages) == [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]


def test_calls_and_results_get_ids_and_names():
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call, {"function": {"name": "g", "arguments": {}}}]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
    ]
    first, one, two = plain_messages(messages)
    ids = [made["id"] for made in first["tool_calls"]]
    assert [len(made) for made in ids] == [9, 9] and len(set(ids)) == 2
    assert first["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert (one["tool_call_id"], one["name"]) == (ids[0], "f")
    assert (two["tool_call_id"], two["name"]) == (ids[1], "g")
