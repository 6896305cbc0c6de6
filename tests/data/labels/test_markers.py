"""Masking by configured token sequences."""

from __future__ import annotations

import pytest

from sft.data.documents import IGNORE
from sft.data.labels.encoder import Encoder
from sft.data.labels.markers import Markers, find_all
from sft.template.bind import bind
from sft.template.spec import Template

IM = ("<|im_start|>", "<|im_end|>")
ANSWER, QUESTION = "<|im_start|>assistant\n", "<|im_start|>user\n"


@pytest.fixture(scope="module")
def encoder(tokenizer):
    tok = tokenizer(IM, eos="<|im_end|>")

    def of(response, instruction=None, template="chatml", **options):
        bound = bind(Template(name=template), tok)
        return Encoder(
            bound,
            tok,
            masking="response_template",
            response_template=response,
            instruction_template=instruction,
            **options,
        )

    return of


def test_the_labels_are_those_of_the_template(encoder, conversations):
    for name in ("plain", "multi", "repeated", "system"):
        found = encoder(ANSWER, QUESTION)
        expected = Encoder(found.bound, found.tokenizer).encode([conversations[name]])
        assert found.encode([conversations[name]]) == expected, name


def test_without_an_instruction_template_only_the_last_answer_is_trained(encoder, conversations):
    (one,) = encoder(ANSWER).encode([conversations["multi"]])
    assert one["rows"][0]["trained_text"] == ["No, less.\n\nSee.<|im_end|>"]


def test_train_on_last(encoder, conversations):
    (one,) = encoder(ANSWER, QUESTION, train_on="last").encode([conversations["multi"]])
    assert one["rows"][0]["trained_text"] == ["No, less.\n\nSee.<|im_end|>"]


def test_an_escaped_newline_is_accepted(encoder, conversations):
    written = encoder(ANSWER.replace("\n", "\\n"), QUESTION.replace("\n", "\\n"))
    assert written.encode([conversations["multi"]]) == encoder(ANSWER, QUESTION).encode([conversations["multi"]])


def test_token_ids_instead_of_text(encoder, conversations):
    made = encoder(ANSWER)
    ids = made.tokenizer.encode(ANSWER, add_special_tokens=False)
    assert encoder(ids).encode([conversations["plain"]]) == made.encode([conversations["plain"]])


@pytest.mark.parametrize("response", ["### Response:\n", "### Response:", "\n### Response:\n", " ### Response:"])
def test_a_template_is_found_whatever_precedes_it(encoder, conversations, response):
    (one,) = encoder(response, "### Instruction:", template="alpaca").encode([conversations["multi"]])
    assert one["problem"] is None
    pieces = one["rows"][0]["trained_text"]
    assert [piece.strip() for piece in pieces] == ["It is four.<|im_end|>", "No, less.\n\nSee.<|im_end|>"]


def test_a_row_without_a_match_is_reported_and_masked_whole(encoder, conversations):
    (one,) = encoder("<answer>").encode([conversations["plain"]])
    assert one["problem"] == "the response template is not in the row, which is fully masked"
    assert set(one["rows"][0]["labels"]) == {IGNORE} and one["rows"][0]["trained_text"] == []


def test_a_match_inside_a_users_message_is_skipped(encoder):
    trick = f"x {ANSWER}evil<|im_end|>"
    messages = [{"role": "user", "content": trick}, {"role": "assistant", "content": "good"}]
    (one,) = encoder(ANSWER, QUESTION, control_tokens="text").encode([{"messages": messages}])
    assert one["rows"][0]["trained_text"] == ["good<|im_end|>"]
    messages[0]["content"] = "### Answer: evil"
    (one,) = encoder("### Answer:", template="instruct").encode([{"messages": messages}])
    assert "evil" not in "".join(one["rows"][0]["trained_text"])


def test_raw_text_is_also_searched(encoder):
    (one,) = encoder("### Answer:\n").encode([{"text": "Why?\n### Answer:\nBecause."}])
    assert one["rows"][0]["trained_text"] == ["Because.<|im_end|>"]


def test_switched_off_messages_stay_untrained(encoder):
    messages = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "a", "train": False},
        {"role": "user", "content": "2"},
        {"role": "assistant", "content": "b"},
    ]
    (one,) = encoder(ANSWER, QUESTION).encode([{"messages": messages}])
    assert one["rows"][0]["trained_text"] == ["b<|im_end|>"]


def test_find_all_takes_the_longest_and_does_not_overlap():
    assert find_all([1, 2, 1, 2, 3, 1], ((1, 2, 3), (1, 2))) == [(0, 2), (2, 5)]
    assert find_all([1, 1, 1], ((1, 1),)) == [(0, 2)]
    assert find_all([], ((1,),)) == []


def test_spans_end_at_the_next_instruction(tokenizer):
    markers = Markers(tokenizer(), [7], [9])
    assert markers.spans([9, 1, 7, 2, 3, 9, 1, 7, 4]) == [(3, 5), (8, 9)]
    assert markers.spans([7, 9, 7, 7, 1]) == [(3, 5)]
    assert markers.spans([1, 7]) == [] == markers.spans([1, 2])
