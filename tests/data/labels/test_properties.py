"""Any conversation, any family: exactly what the model has to produce is trained, and nothing of the other roles."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft.data.documents import IGNORE
from sft.data.labels.encoder import Encoder
from sft.template.bind import bind
from sft.template.candidates import packaged_templates
from sft.template.families import by_template, detect
from sft.template.rendering.spans import trained_turns
from sft.template.spec import Template

OWN = {
    "cohere2": "cohere2",
    "deepseekv3": "deepseek_v3",
    "gemma3": "gemma3",
    "gemma4_v5": "gemma4",
    "glm4moe": "glm4_moe",
    "gptoss": "gpt_oss",
    "lfm2_2_5": "lfm2",
    "llama3_1": "llama",
    "muse_glimmer": "muse_glimmer",
    "nemotron_3_nano": "nemotron_h",
    "phi3": "phi3",
    "qwen2_5": "qwen2",
    "qwen3": "qwen3",
    "qwen3_5_think": "qwen3_5",
}
# what templates and data of other families write, so that contents are full of it
CONTROL = [
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "</s>",
    "[/INST]",
    "<|eot_id|>",
    "<end_of_turn>\n",
    "<|end|>",
    "<|user|>",
]
WRITTEN = [
    "<think>",
    "</think>",
    "<tool_response>",
    "/nothink",
    "### Response:\n",
    "Assistant:",
    "<｜Assistant｜>",
    "<|start|>",
]
EDGES = ["\n\n", " ", "\r\n", "\t", "😀", "e", "<", "\u200b", "\x00", "again", "\U00100003", "{{ x }}", "{% endfor %}"]
ODD = st.sampled_from([*CONTROL, *WRITTEN, *EDGES])
TAME = st.sampled_from(
    ["again", "It is.", "\n", " ", "e", "<b>", "😀", "{{ x }}", "日本", "'q\"", "user", "\\n", "4", "ﬀ"]
)
ANY = st.lists(ODD | st.text(st.characters(blacklist_categories=("Cs",)), max_size=8), max_size=4).map("".join)
SAID = st.lists(TAME | ODD, min_size=1, max_size=3).map("".join) | st.lists(TAME, min_size=1, max_size=4).map("".join)


@st.composite
def conversation(draw):
    messages = [{"role": "system", "content": draw(ANY)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(ANY)})
        if draw(st.integers(0, 5)) == 0:
            arguments = {"city": draw(SAID), "days": draw(st.integers(0, 9))}
            call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "content": draw(ANY), "name": "weather"})
        answer = {"role": "assistant", "content": draw(SAID)}
        if draw(st.integers(0, 7)) == 0:
            answer["train"] = False
        if draw(st.integers(0, 7)) == 0:
            answer["reasoning_content"] = draw(SAID)
        messages.append(answer)
    return {"messages": messages}


@pytest.fixture(scope="module")
def encoder(tokenizer, trl_templates, conversations):
    @cache
    def of(name):
        if name in OWN:
            family = detect(OWN[name])
            tokens = (*family.control_tokens, *family.stop_tokens, *([family.tool_stop] if family.tool_stop else []))
            tok = tokenizer(tokens, eos=family.stop_tokens[0], template=trl_templates[name])
            bound = bind(Template(), tok, family, [conversations["plain"]])
        else:
            family = by_template(name)
            tokens = (*family.control_tokens, *family.stop_tokens) if family else ()
            tok = tokenizer(tokens, eos=family.stop_tokens[0] if family else "</s>")
            bound = bind(Template(name=name), tok)
        return Encoder(bound, tok)

    return of


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([*packaged_templates(), *OWN]), given_one=conversation())
def test_exactly_what_the_model_has_to_produce_is_trained(encoder, name, given_one):
    made = encoder(name)
    messages = given_one["messages"]
    (encoded,) = made.encode([given_one])
    if encoded["problem"] is not None:
        assert encoded["rows"] == []
        return
    rendered = made.render(given_one)
    assert sorted(turn for row in rendered for turn in row.turns) == trained_turns(messages)
    for row, labelled in zip(rendered, encoded["rows"], strict=True):
        ids, labels = labelled["input_ids"], labelled["labels"]
        assert all(label in (IGNORE, token) for token, label in zip(ids, labels, strict=True))
        trained = made.tokenizer.decode([label for label in labels if label != IGNORE])
        assert trained == "".join(labelled["trained_text"])
        for turn, (start, end), piece in zip(row.turns, row.spans, labelled["trained_text"], strict=True):
            # the prompt is all that is before, and the turn is all that is trained: its words, to the stop token
            assert row.text[:start] == made.bound.render({"messages": messages[:turn]}, add_generation_prompt=True)
            words = messages[turn]["content"].strip().rpartition("</think>")[2].strip()
            assert words in row.text[start:end] and row.text[start:end].endswith(piece)
            stop = next(token for token in made.bound.stop_tokens if piece.endswith(token))
            assert piece.removesuffix(stop).find(stop) < 0 or name in ("gptoss", "muse_glimmer")
    made.check([given_one])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(packaged_templates()), batch=st.lists(conversation(), min_size=2, max_size=4))
def test_a_batch_is_its_conversations(encoder, name, batch):
    made = encoder(name)
    assert made.encode(batch) == [made.encode([single])[0] for single in batch]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["chatml", "llama3", "qwen3", "phi3"]), given_one=conversation())
def test_train_on_all_trains_more_and_last_trains_less(encoder, name, given_one):
    made = encoder(name)
    options = {"bound": made.bound, "tokenizer": made.tokenizer}
    (each,), (last,), (every,) = (
        Encoder(**options, train_on=train_on).encode([given_one]) for train_on in ("assistant", "last", "all")
    )
    if each["problem"] is None:
        assert last["problem"] is None and len(last["rows"]) == 1
        final = last["rows"][0]["trained_text"]
        assert final == each["rows"][0]["trained_text"][-1:]
    if every["problem"] is None:
        off = [message for message in given_one["messages"] if message.get("train") is False]
        assert off or every["rows"][0]["labels"] == every["rows"][0]["input_ids"]
