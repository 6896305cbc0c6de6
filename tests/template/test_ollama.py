"""Chat templates in Go's notation render the same text as the chat template."""

from __future__ import annotations

import re
from types import SimpleNamespace

import jinja2
import pytest

from sft.template.candidates import packaged_text
from sft.template.ollama import find_pieces
from sft.template.rendering.render import render

SYSTEM = {"role": "system", "content": "Be kind."}
CHAT = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]
CONTEXT = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}


def renderer(text: str):
    return lambda conversation, prompt: render(text, conversation["messages"], CONTEXT, prompt)


def run_go(template: str, messages: list[dict[str, str]]) -> str:
    """Go's template in Jinja's notation, action by action; `-` trims white space as in Go."""
    text = re.sub(r"\s*\{\{- ", "{{ ", template)
    text = re.sub(r" -\}\}\s*", " }}", text)
    actions = {
        '$before := ""': "{% set ns = namespace(before='') %}",
        "range $i, $_ := .Messages": "{% for m in messages %}",
        "$last := eq (len (slice $.Messages $i)) 1": "{% set last = loop.last %}",
        "$before = .Role": "{% set ns.before = m.role %}",
        ".Content": "{{ m.content }}",
        "else": "{% else %}",
        "if $last": "{% if last %}",
    }
    ends: list[str] = []

    def translated(match: re.Match[str]) -> str:
        action = match[1].strip()
        if action.startswith("range"):
            ends.append("{% endfor %}")
        elif action.startswith("if"):
            ends.append("{% endif %}")
        if action == "end":
            return ends.pop()
        if compared := re.fullmatch(r'(else )?if eq (\$before|\.Role) "(\w*)"', action):
            name = {"$before": "ns.before", ".Role": "m.role"}[compared[2]]
            return f"{{% {'elif' if compared[1] else 'if'} {name} == '{compared[3]}' %}}"
        return actions[action]

    source = re.sub(r"\{\{(.*?)\}\}", translated, text)
    assert ends == []
    return jinja2.Environment(keep_trailing_newline=True).from_string(source).render(messages=messages)


@pytest.mark.parametrize("name", ["chatml", "llama3", "qwen2", "phi3", "phi4", "zephyr", "gemma", "granite", "smollm3"])
@pytest.mark.parametrize("messages", [CHAT[:1], CHAT, [SYSTEM, *CHAT[:1]], [SYSTEM, *CHAT]], ids=len)
def test_the_go_template_renders_the_same_as_the_chat_template(name, messages):
    draw = renderer(packaged_text(name))
    pieces = find_pieces(draw, "<s>")
    if pieces is None:
        pytest.fail(f"{name} is not put into Go's notation")
    wanted = draw({"messages": messages}, True).removeprefix("<s>")
    assert pieces.text(messages) == wanted
    assert run_go(pieces.go(), messages) == wanted


def test_an_unsupported_template_is_skipped():
    assert find_pieces(renderer("{% for m in messages %}{{ m.content | upper }}{% endfor %}")) is None
    assert find_pieces(renderer("{% for m in messages %}{{ loop.index }}{{ m.content }};{% endfor %}")) is None
    assert find_pieces(renderer("{% for m in messages %}{{ '{{' }}{{ m.content }}{% endfor %}")) is None


def test_the_modelfile_has_prompt_and_stops():
    from sft.export.serving import modelfile
    from sft.run.info import TrainingInfo

    info = TrainingInfo(system="Answer in JSON.", stop_tokens=['<|"end"|>'])
    text = packaged_text("chatml")
    made = modelfile(info, SimpleNamespace(render=renderer(text), bos=None))  # type: ignore[arg-type]
    lines = made.splitlines()
    assert lines[1] == "FROM ." and lines[2].startswith('TEMPLATE """{{- $before')
    assert 'SYSTEM """Answer in JSON."""' in lines
    assert r'PARAMETER stop "<|\"end\"|>"' in lines and lines[-1] == "PARAMETER temperature 0"
