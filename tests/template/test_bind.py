"""Which chat template is chosen, why, and what is written into it."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from sft.config.errors import UserError
from sft.template.bind import bind
from sft.template.families import GENERIC, detect
from sft.template.spec import Template

IM = ("<|im_start|>", "<|im_end|>")
OWN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def as_transformers(tokenizer, bound, conversation, **kwargs):
    """What plain transformers makes of the saved template."""
    return tokenizer.apply_chat_template(
        conversation["messages"], chat_template=bound.text, tokenize=False, tools=conversation.get("tools"), **kwargs
    )


def test_auto_uses_the_models_own(tokenizer, conversations):
    bound = bind(Template(), tokenizer(IM, template=OWN), sample=[conversations["system"]])
    assert (bound.name, bound.text, bound.stop_tokens[0]) == ("own", OWN, "<|im_end|>")
    assert bound.reason == "the model's own chat template is used" and bound.warnings == []


def test_auto_uses_the_familys_if_the_model_has_none(tokenizer):
    bound = bind(Template(), tokenizer(detect("gemma3").control_tokens, bos="<bos>"), detect("gemma3"))
    assert (bound.name, bound.family, bound.stop_tokens[0]) == ("gemma", "gemma", "<end_of_turn>")
    assert "template of gemma" in bound.reason


def test_auto_uses_chatml_for_an_unknown_model_and_names_the_missing_tokens(tokenizer):
    bound = bind(Template(), tokenizer())
    assert (bound.name, bound.missing_tokens) == ("chatml", ["<|im_start|>", "<|im_end|>"])
    assert bind(Template(), tokenizer(IM)).missing_tokens == []


def test_auto_uses_chatml_if_the_models_own_drops_tools(tokenizer, conversations):
    family = detect("llama", "SmolLM2-135M")
    bound = bind(Template(), tokenizer(IM, template=OWN), family, [conversations["plain"], conversations["tools"]])
    assert bound.name == "chatml"
    assert "the chat template drops tool calls" in bound.reason and "ChatML" in bound.reason
    assert bound.warnings[0] == bound.reason
    assert "You are a helpful AI assistant named SmolLM" in bound.render(conversations["plain"])


def test_a_named_template_that_drops_something_is_refused(tokenizer, conversations):
    with pytest.raises(UserError, match=r"zephyr does not fit the rows.*tools"):
        bind(Template(name="zephyr"), tokenizer(), sample=[conversations["tools"]])
    with pytest.raises(UserError, match="the chat template drops tool calls"):
        bind(Template(name="file", text=OWN), tokenizer(IM), sample=[conversations["tools"]])


def test_a_template_that_refuses_most_rows_is_not_used(tokenizer, conversations):
    picky = "{% if messages|length != 2 %}{{ raise_exception('two only') }}{% endif %}" + OWN
    bound = bind(Template(), tokenizer(IM, template=picky), sample=[conversations["repeated"]] * 3)
    assert bound.name == "chatml"
    bound = bind(Template(), tokenizer(IM, template=picky), sample=[conversations["plain"]] * 3)
    assert bound.name == "own"


def test_one_bad_row_does_not_change_the_template(tokenizer, conversations):
    gemma = detect("gemma3")
    bad = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    bound = bind(
        Template(), tokenizer(gemma.control_tokens), gemma, [conversations["plain"], bad, conversations["plain"]]
    )
    assert bound.name == "gemma"


def test_a_formats_usual_template_is_used_if_the_model_has_none(tokenizer):
    gpt2 = detect("gpt2")
    assert bind(Template(), tokenizer(), gpt2, formats=["instruction"]).name == "alpaca"
    assert bind(Template(), tokenizer(), gpt2, formats=["instruction", "messages"]).name == "chatml"
    assert bind(Template(), tokenizer(IM, template=OWN), gpt2, formats=["instruction"]).name == "own"


def test_a_users_template_file(tokenizer, tmp_path, conversations):
    path = tmp_path / "mine.jinja"
    path.write_text(OWN)
    assert bind(Template(name="file", path=str(path)), tokenizer(IM)).text == OWN
    path.write_text("{% for %}")
    with pytest.raises(UserError, match="line 1"):
        bind(Template(name="file", path=str(path)), tokenizer(IM))
    with pytest.raises(UserError, match="cannot read"):
        bind(Template(name="file", path=str(tmp_path / "none.jinja")), tokenizer(IM))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        bind(Template(name="file", path=str(path)), tokenizer(IM))
    for wrong in (Template(name="file"), Template(name="file", path="a", text="b"), Template(path="a")):
        with pytest.raises(UserError, match=r"template\.path"):
            bind(wrong, tokenizer(IM))


def test_an_unknown_name_suggests_the_nearest(tokenizer):
    with pytest.raises(UserError, match="did you mean chatml"):
        bind(Template(name="chatm"), tokenizer())


def test_the_runs_system_message_and_variables_are_in_the_saved_template(tokenizer, conversations):
    own = "{{ mood }}{% if enable_thinking is defined and not enable_thinking %}!{% endif %}" + OWN
    kwargs = {"mood": 'a "b" {% c', "enable_thinking": False, "deep": {"x": [1, None, True]}}
    template = Template(name="file", text=own, system="Say {{ nothing }} \\n 'odd'.\nEver.", kwargs=kwargs)
    tok = tokenizer(IM)
    bound = bind(template, tok)
    for conversation in (conversations["plain"], conversations["system"]):
        assert as_transformers(tok, bound, conversation) == bound.render(conversation)
    text = bound.render(conversations["plain"])
    assert text.startswith("a \"b\" {% c!<|im_start|>system\nSay {{ nothing }} \\n 'odd'.\nEver.<|im_end|>\n")
    assert "Be brief." in bound.render(conversations["system"])
    assert "Ever" not in bound.render(conversations["system"])
    with pytest.raises(UserError, match=r"template\.kwargs"):
        bind(replace(template, kwargs={"not a name": 1}), tok)


def test_saved_templates_render_the_same_in_plain_transformers(tokenizer, trl_templates, conversations):
    for name, text in list(trl_templates.items())[::4]:
        tok = tokenizer(template=text, adds_bos=name.startswith("qwen"))
        try:
            bound = bind(
                Template(name="auto", system="Be kind.", date="2025-03-04"), tok, sample=[conversations["plain"]]
            )
        except UserError:
            continue
        if bound.style.parts or bound.date:
            continue
        assert as_transformers(tok, bound, conversations["plain"]) == bound.render(conversations["plain"]), name


def test_a_missing_bos_is_added_and_logged(tokenizer, conversations):
    tok = tokenizer(IM, adds_bos=True, template=OWN)
    bound = bind(Template(), tok)
    assert bound.bos == "<s>" and "does not write <s>" in bound.warnings[0]
    assert bound.render(conversations["plain"]).startswith("<s><|im_start|>user")
    assert as_transformers(tok, bound, conversations["plain"]) == bound.render(conversations["plain"])
    with_bos = bind(Template(), tokenizer(IM, adds_bos=True, template="{{ bos_token }}" + OWN))
    assert with_bos.warnings == [] and with_bos.render(conversations["plain"]).count("<s>") == 1


def test_the_date_is_set_if_the_template_prints_one(tokenizer):
    dated = "{{ strftime_now('%Y') }}" + OWN
    assert bind(Template(name="file", text=OWN), tokenizer(IM)).date is None
    bound = bind(Template(name="file", text=dated, date="1999-12-31"), tokenizer(IM))
    assert bound.date == "1999-12-31" and bound.render({"messages": []}).startswith("1999")
    assert bind(Template(name="file", text=dated), tokenizer(IM)).date is not None
    with pytest.raises(UserError, match=r"template\.date"):
        bind(Template(name="file", text=dated, date="soon"), tokenizer(IM))


def test_enable_thinking_follows_the_rows(tokenizer, trl_templates, conversations):
    think = tokenizer((*IM, "<think>", "</think>"), eos="<|im_end|>", template=trl_templates["nemotron_3_nano"])
    plain = bind(Template(), think, detect("nemotron_h"), [conversations["plain"]])
    assert plain.kwargs == {"enable_thinking": False} and "enable_thinking=false is set" in plain.warnings[0]
    assert plain.render({"messages": conversations["plain"]["messages"][:1]}, True).endswith("<think></think>")
    reasoned = bind(Template(), think, detect("nemotron_h"), [conversations["reasoning"]])
    assert reasoned.kwargs == {} and reasoned.warnings == []
    asked = bind(Template(kwargs={"enable_thinking": True}), think, detect("nemotron_h"), [conversations["plain"]])
    assert asked.kwargs == {"enable_thinking": True}


@pytest.mark.parametrize(
    ("name", "model_type", "stops", "tool_stop", "open_turn"),
    [
        ("qwen3", "qwen3", "<|im_end|>", None, False),
        ("phi3", "phi3", "<|end|>", None, False),
        ("gemma3", "gemma3", "<end_of_turn>", None, False),
        ("llama3", "llama", "<|eot_id|>", None, False),
        ("glm4moe", "glm4_moe", "<|user|>", "<|observation|>", True),
        ("gptoss", "gpt_oss", "<|return|>", "<|call|>", False),
        ("cohere2", "cohere2", "<|END_OF_TURN_TOKEN|>", None, False),
        ("deepseekv3", "deepseek_v3", "<｜end▁of▁sentence｜>", None, False),
        ("gemma4_v5", "gemma4", "<turn|>", "<|tool_response>", False),
    ],
)
def test_stop_tokens_are_detected(name, model_type, stops, tool_stop, open_turn, tokenizer, trl_templates):
    family = detect(model_type)
    eos = "<|endoftext|>" if name in ("phi3", "glm4moe") else stops
    tokens = (*family.control_tokens, *family.stop_tokens, family.tool_stop or "</s>")
    bound = bind(Template(), tokenizer(tokens, eos=eos, template=trl_templates[name]), family)
    assert (bound.stop_tokens[0], bound.tool_stop, bound.open_turn) == (stops, tool_stop, open_turn)


def test_stop_tokens_of_an_unknown_template(tokenizer):
    odd = "{% for m in messages %}[|{{ m.role }}|] {{ m.content }}[|endofturn|]\n{% endfor %}"
    known = bind(Template(), tokenizer(("[|endofturn|]",), template=odd), GENERIC)
    assert known.stop_tokens[0] == "[|endofturn|]" and known.missing_tokens == []
    open_one = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    bound = bind(Template(), tokenizer(template=open_one), GENERIC)
    assert bound.open_turn and bound.stop_tokens == ["</s>"]


def test_of_several_named_templates_the_one_for_tools_is_used(tokenizer):
    named = {"default": OWN.replace("<|im_end|>", "</s>"), "tool_use": OWN}
    assert bind(Template(), tokenizer(IM, template=named)).text == OWN
    assert bind(Template(), tokenizer(IM, template={"default": OWN, "rag": "x"})).text == OWN


def test_a_bound_template_can_be_pickled(tokenizer, conversations):
    bound = bind(Template(), tokenizer(IM, template=OWN))
    before = bound.render(conversations["plain"])
    bound.generation_prompt()
    assert pickle.loads(pickle.dumps(bound)).render(conversations["plain"]) == before


def test_call_ids_refused_by_a_template_are_replaced(tokenizer, conversations):
    strict = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id|length != 9 %}{{ raise_exception('nine') }}"
        "{% endif %}[{{ c.id }} {{ c.function.name }} {{ c.function.arguments|tojson }}]{% endfor %}"
        "{% if m.role == 'tool' %}{{ '<' ~ m.tool_call_id ~ '>' }}{% endif %}{{ m.content }}</s>{% endfor %}"
    )
    call = {"id": "call_A", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    other = {**call, "id": "call_B", "function": {"name": "g", "arguments": {}}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call, other]},
        {"role": "tool", "content": "second", "tool_call_id": "call_B"},
        {"role": "tool", "content": "first", "tool_call_id": "call_A"},
        {"role": "assistant", "content": "y"},
    ]
    bound = bind(Template(name="file", text=strict), tokenizer(), sample=[{"messages": messages}])
    assert bound.style.short_ids
    text = bound.render({"messages": messages})
    first, second = text.split("[")[1][:9], text.split("[")[2][:9]
    assert f"<{second}>second" in text and f"<{first}>first" in text and "call_" not in text
    lax = bind(Template(name="file", text=strict.replace("9", "6")), tokenizer(), sample=[conversations["plain"]])
    assert "<call_B>second" in lax.render({"messages": messages})


def test_a_prompt_that_ends_inside_a_token_is_warned_about(tokenizer):
    spaced = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    (warning,) = bind(Template(name="file", text=spaced), tokenizer()).warnings
    assert "end the prompt without a space" in warning
    assert bind(Template(name="file", text=spaced.replace("assistant: ", "assistant:")), tokenizer()).warnings == []
