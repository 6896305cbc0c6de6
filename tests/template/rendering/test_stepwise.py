"""What can be proven from a template's source, and that using the proof changes no row."""

from __future__ import annotations

import pytest

from sft.template import bound as bound_module
from sft.template.bind import bind
from sft.template.candidates import packaged_templates, packaged_text
from sft.template.families import by_template
from sft.template.rendering.spans import Unlabelable, render_rows
from sft.template.rendering.stepwise import stepwise
from sft.template.spec import Template

LOOP = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.mark.parametrize(
    "text",
    [
        LOOP,
        LOOP + PROMPT,
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0].content }}{% endif %}" + LOOP,
        "{% set rest = messages %}" + LOOP.replace("in messages", "in rest"),
        "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
        + LOOP.replace("in messages", "in rest"),
        LOOP.replace("</s>", "{% if loop.first %}!{% endif %}{{ messages[loop.index0 - 1].role }}</s>"),
        LOOP.replace("</s>", "{% for c in m.tool_calls or [] %}{{ c }}{{ ',' if not loop.last }}{% endfor %}</s>"),
        "{% for t in tools or [] %}{{ t }}{{ ',' if not loop.last }}{% endfor %}" + LOOP,
        "{% set ns = namespace(n=0) %}" + LOOP.replace("</s>", "{% set ns.n = ns.n + 1 %}{{ ns.n }}</s>") + PROMPT,
        LOOP + "{% if add_generation_prompt %}<assistant>{% else %}{{ eos_token }}{% endif %}",
    ],
)
def test_templates_proven_to_be_stepwise(text):
    assert stepwise(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages[-1].content }}" + LOOP,
        "{{ messages[1].content }}" + LOOP,
        "{{ messages | length }}" + LOOP,
        "{% set n = messages | length %}" + LOOP,
        "{% set all = messages or [] %}{% for m in all %}{{ m.content }}{% endfor %}",
        "{% set last = (messages if x else [])[-1] %}" + LOOP,
        "{% for m in messages[::-1] %}{{ m.content }}{% endfor %}" + LOOP,
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% else %}none{% endfor %}",
        LOOP + LOOP,
        LOOP.replace("</s>", "{{ '</s>' if loop.last }}"),
        LOOP.replace("</s>", "{{ loop.revindex }}</s>"),
        LOOP.replace("</s>", "{{ loop.length }}</s>"),
        LOOP.replace("</s>", "{{ messages[loop.index0 + 1].role }}</s>"),
        LOOP.replace("</s>", "{{ messages[loop.index].role }}</s>"),
        LOOP.replace("</s>", "{{ loop.nextitem.role }}</s>"),
        LOOP.replace("</s>", "{{ '' if add_generation_prompt else '</s>' }}"),
        "{% macro f(l) %}{{ l.last }}{% endmacro %}" + LOOP.replace("</s>", "{{ f(loop) }}</s>"),
        "{% macro f() %}{{ messages[-1].content }}{% endmacro %}{{ f() }}" + LOOP,
        "{% set messages = messages[1:] %}" + LOOP,
        LOOP + "{{ messages[-1].role }}",
        LOOP + "\nend",
        LOOP + "{% if add_generation_prompt %}{{ messages[-1].role }}{% endif %}",
        "{% set ns = namespace(n=0) %}" + LOOP + "{% if add_generation_prompt %}{{ ns.n }}{% endif %}",
        LOOP + "{% if add_generation_prompt and messages[-1].role == 'user' %}<assistant>{% endif %}",
        LOOP + "{% if add_generation_prompt %}{{ tools }}{% endif %}",
        "{% filter upper %}" + LOOP + "{% endfilter %}",
        "no loop",
    ],
)
def test_templates_not_proven_to_be_stepwise(text):
    assert stepwise(text) is None


def test_a_proof_may_hold_only_without_tool_results():
    text = LOOP.replace("</s>", "{% if m.role == 'tool' %}{{ loop.nextitem.role }}{% endif %}</s>")
    steps = stepwise(text)
    assert steps is not None and steps.without_tools
    assert steps.covers([{"role": "user"}]) and not steps.covers([{"role": "user"}, {"role": "tool"}])


def test_most_packaged_templates_are_proven():
    proven = {name for name in packaged_templates() if stepwise(packaged_text(name))}
    assert proven >= {"chatml", "llama2", "llama3", "llama3_1", "mistral", "gemma", "phi3", "qwen2", "zephyr", "alpaca"}
    assert not proven & {"qwen3", "gptoss", "nemotron"}


def rows_of(bound, conversation):
    try:
        return [(row.text, row.spans, row.turns) for row in render_rows(bound, conversation)]
    except Unlabelable as error:
        return str(error)


def test_rows_are_the_same_with_and_without_the_proof(tokenizer, conversations, trl_templates, monkeypatch):
    odd = [
        {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": content, "train": train}]}
        for content in (" a ", "\n\n", "x<|im_end|>", "\U0010fff2", "<think>\nb\n</think>\n\nc")
        for train in (True, False)
    ]
    greeting = {"messages": [{"role": "assistant", "content": "hi"}, *conversations["system"]["messages"][1:]]}
    everything = [*conversations.values(), *odd, greeting]
    names = [name for name in packaged_templates() if stepwise(packaged_text(name))]
    bounds = []
    for name in names:
        family = by_template(name)
        tok = tokenizer((*family.control_tokens, *family.stop_tokens) if family else (), adds_bos=name == "qwen2")
        bounds += [bind(Template(name=name), tok), bind(Template(name=name, system="Be kind."), tok)]
    bounds += [bind(Template(name="file", text=text), tokenizer()) for text in trl_templates.values() if stepwise(text)]
    fast = [[rows_of(bound, conversation) for conversation in everything] for bound in bounds]
    monkeypatch.setattr(bound_module, "stepwise", lambda text: None)
    slow = [[rows_of(bound, conversation) for conversation in everything] for bound in bounds]
    assert fast == slow
