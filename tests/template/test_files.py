"""The packaged templates render the same text as their families' own templates."""

from __future__ import annotations

import pytest

from sft.template.bind import bind
from sft.template.candidates import packaged_templates, packaged_text
from sft.template.families import by_template
from sft.template.probe import renderer
from sft.template.rendering.messages import Style
from sft.template.rendering.render import RenderError
from sft.template.rendering.spans import render_rows
from sft.template.spec import Template

# ours -> the family's own, as TRL keeps it. Not faithful on purpose: Phi 3's extra end token after the last turn.
OWN = {
    "cohere": "cohere",
    "gemma": "gemma3",
    "gemma4": "gemma4_v5",
    "gptoss": "gptoss",
    "llama3": "llama3",
    "llama3_1": "llama3_1",
    "nemotron": "nemotron_3_nano",
    "phi3": "phi3_5",
    "qwen2": "qwen2_5",
    "qwen3": "qwen3",
}
WITHOUT_TOOLS = {"gemma4", "gptoss", "nemotron"}


@pytest.mark.parametrize("name", OWN)
def test_the_packaged_template_renders_as_the_familys(name, trl_templates, conversations):
    variables = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
    ours = renderer(packaged_text(name), variables, "2025-01-02")
    own = renderer(trl_templates[OWN[name]], variables, "2025-01-02")
    compared = 0
    for shape, conversation in conversations.items():
        for upto, prompt in ((None, False), (-1, True)):
            cut = {**conversation, "messages": conversation["messages"][:upto]}
            try:
                expected = own(cut, Style(), prompt)
            except RenderError:
                continue
            if name == "phi3":
                if shape == "tools":
                    continue  # Phi 3 drops tool messages in silence, ours refuses them
                expected = expected.removesuffix("<|endoftext|>")
            elif (name in WITHOUT_TOOLS or name == "llama3") and shape == "tools":
                with pytest.raises(RenderError):
                    ours(cut, Style(), prompt)
                continue
            assert ours(cut, Style(), prompt) == expected, shape
            compared += 1
    assert compared >= 8


@pytest.mark.parametrize("name", packaged_templates())
def test_several_turns_train_with_every_packaged_template(name, tokenizer, conversations):
    family = by_template(name)
    tokens = (*family.control_tokens, *family.stop_tokens) if family else ()
    eos = family.stop_tokens[0] if family else "</s>"
    bound = bind(Template(name=name), tokenizer(tokens, eos=eos))
    assert bound.missing_tokens == []
    rows = render_rows(bound, conversations["multi"])
    spans = sorted(row.text[start:end] for row in rows for start, end in row.spans)
    stop = bound.stop_tokens[0]
    assert [span.rpartition("</think>")[2].strip() for span in spans] == [
        f"It is four.{stop}" if name not in {"llama2"} else f"It is four. {stop}",
        f"No, less.\n\nSee.{stop}" if name not in {"llama2"} else f"No, less.\n\nSee. {stop}",
    ] or name == "gptoss"
    assert all(span.endswith(stop) for span in spans)


def test_chatml_keeps_tools_calls_results_and_reasoning(tokenizer, conversations):
    bound = bind(Template(name="chatml"), tokenizer(("<|im_start|>", "<|im_end|>")), sample=[*conversations.values()])
    text = bound.render(conversations["tools"])
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>tool\n<tool_response>\nsunny\n</tool_response><|im_end|>" in text
    assert '"description": "The weather"' in text.split("<|im_end|>")[0]
    thought = bound.render(conversations["reasoning"])
    assert thought.endswith("<|im_start|>assistant\n<think>\nI count.\n</think>\n\nIt is four.<|im_end|>\n")
