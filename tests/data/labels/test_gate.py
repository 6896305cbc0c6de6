"""What stops a row or a source before it is trained, and the two-way check."""

from __future__ import annotations

import pytest

from sft.config.errors import UserError
from sft.data.documents import IGNORE
from sft.data.labels.encoder import Encoder
from sft.data.labels.gate import Gate, span_ends
from sft.data.labels.spans_by_contents import measured_closings
from sft.template.bind import bind
from sft.template.families import GENERIC
from sft.template.spec import Template

IM = ("<|im_start|>", "<|im_end|>")


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


PLAIN = {"messages": [user("a"), assistant("b")]}


@pytest.fixture(scope="module")
def gate(tokenizer):
    tok = tokenizer(IM, adds_bos=True)
    bound = bind(Template(name="chatml"), tok)
    return Gate(bound, tok), tok.bos_token_id, tok.convert_tokens_to_ids("<|im_end|>")


def test_rows(gate):
    check, bos, stop = gate
    assert check.row([bos, 5, 6, stop], [IGNORE, IGNORE, 6, stop]) is None
    assert check.row([bos, bos, 6, stop], [IGNORE, IGNORE, 6, stop]) == "the row begins with <s> twice"
    assert "does not begin with <s>" in check.row([5, 6, stop], [IGNORE, 6, stop])
    assert check.row([bos, 5], [IGNORE, IGNORE]) == "no token of the row is trained"
    assert check.row([bos, 6, stop], [IGNORE, 6, IGNORE]) == "the end-of-turn token is not trained: <|im_end|>"
    labels = [IGNORE, 6, stop, IGNORE, 7, IGNORE]
    assert "end-of-turn" in check.row([bos, 6, stop, 5, 7, stop], labels)
    assert check.row([bos, 6], [bos, 6], raw=True) is None
    assert "does not begin" in check.row([], [])


def test_sources():
    assert Gate.source("chats", 3, 0) == "source chats has 3 rows but no token to train on"
    assert Gate.source("chats", 3, 1) is None and Gate.source("chats", 0, 0) is None


def test_span_ends():
    assert list(span_ends([IGNORE, 1, 2, IGNORE, 3])) == [3, 5]
    assert list(span_ends([IGNORE])) == [] == list(span_ends([]))


def problem(template, tok, conversation, **options):
    bound = bind(template, tok, GENERIC)
    return Encoder(bound, tok, **options).encode([conversation])[0]["problem"]


def test_a_users_template_with_two_bos_or_none_is_refused(tokenizer):
    tok = tokenizer(IM, adds_bos=True)
    body = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    with pytest.raises(UserError, match=r"template.path: the chat template writes <s> twice"):
        bind(Template(name="file", text="{{ bos_token }}{{ bos_token }}" + body), tok, GENERIC)
    with pytest.raises(UserError, match=r"the chat template does not write <s>, with which .*\n.*begin it with {{ bos"):
        bind(Template(name="file", text=body), tok, GENERIC)
    assert problem(Template(name="file", text="{{ bos_token }}" + body), tok, PLAIN) is None


def test_a_split_stop_token_is_trained_completely(tokenizer):
    tok = tokenizer()
    bound = bind(Template(name="chatml"), tok)
    assert bound.missing_tokens == list(IM)
    (one,) = Encoder(bound, tok).encode([PLAIN])
    assert one["rows"][0]["trained_text"] == ["b<|im_end|>"]


def test_answers_without_a_stop_token_are_reported(tokenizer):
    """Markers find an answer, the template ends it with nothing."""
    tok = tokenizer()
    bare = Template(name="file", text="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    options = {"masking": "response_template", "response_template": "assistant:"}
    assert problem(bare, tok, PLAIN, **options) == "the end-of-turn token is not trained: </s>"


def test_both_methods_agree(tokenizer, conversations):
    tok = tokenizer(IM, eos="<|im_end|>")
    encoder = Encoder(bind(Template(name="chatml"), tok), tok)
    report = encoder.check([conversations["multi"], conversations["tools"], {"text": "raw"}, {"messages": [user("x")]}])
    assert report == {"rows": 2, "turns": 4, "methods": {"marks": 4}, "found_one_way_only": 0}


def test_generation_blocks_are_compared(tokenizer, trl_templates, conversations):
    tok = tokenizer(IM, eos="<|im_end|>", template=trl_templates["qwen2_5_training"])
    report = Encoder(bind(Template(), tok), tok).check([conversations["multi"]])
    assert report["methods"] == {"generation blocks": 2, "marks": 2}


def test_wrong_generation_blocks_stop_the_run_with_both_shown(tokenizer):
    wrong = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}<|im_end|>{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tok = tokenizer(IM, eos="<|im_end|>", template=wrong)
    encoder = Encoder(bind(Template(), tok), tok)
    with pytest.raises(UserError) as error:
        encoder.check([PLAIN])
    assert "['b<|im_end|>']" in str(error.value) and "['b']" in str(error.value)
    assert "by rendered prefixes" in str(error.value) and "by generation blocks" in str(error.value)


def test_a_truncated_span_is_detected(tokenizer, monkeypatch):
    """A fault of ours in finding the end is found by the marks."""
    tok = tokenizer(IM, eos="<|im_end|>")
    encoder = Encoder(bind(Template(name="chatml"), tok), tok)
    (row,) = encoder.render(PLAIN)
    for wrong in ((row.spans[0][0] + 1, row.spans[0][1]), (row.spans[0][0], row.spans[0][1] - 1), (0, row.spans[0][1])):
        row.spans = [wrong]
        monkeypatch.setattr(encoder, "render", lambda conversation, row=row: [row])
        with pytest.raises(UserError, match="two ways to find the trained text of message 2 differ"):
            encoder.check([PLAIN])


def test_the_response_marker_is_used_if_marks_do_not_work(tokenizer):
    tok = tokenizer(IM, eos="<|im_end|>")
    bound = bind(Template(name="chatml"), tok)
    odd = {"messages": [user("a\U00100000"), assistant("b")]}
    assert Encoder(bound, tok).check([odd])["methods"] == {"response marker": 1}


def test_other_methods_return_nothing_where_they_do_not_apply(tokenizer):
    tok = tokenizer(IM, eos="<|im_end|>")
    bound = bind(Template(name="chatml"), tok)
    two = {"messages": [user("a"), assistant("b"), assistant("c")]}
    report = Encoder(bound, tok).check([two])
    assert report["found_one_way_only"] == 0 and report["methods"]["response marker"] == 2
    assert measured_closings(bound) == {"user": "<|im_end|>\n<|im_start|>user\n", "": "<|im_end|>\n"}
