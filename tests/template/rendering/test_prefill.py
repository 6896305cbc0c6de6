"""Where the trained part of a prefilled answer begins."""

from __future__ import annotations

import pytest

from sft.template.rendering.prefill import Unlabelable, trained_from


def begins(text: str, content: str, prefill: str) -> str:
    message = {"role": "assistant", "content": content, "prefill": prefill}
    return text[trained_from(text, 2, len(text), message, 1) :]


def test_an_answer_without_prefill_begins_with_its_turn():
    assert trained_from("A:ok.", 2, 5, {"role": "assistant", "content": "ok"}, 1) == 2


@pytest.mark.parametrize(
    ("text", "content", "prefill", "rest"),
    [
        ("A:so it is.", "so it is", "so", " it is."),
        ("A:so it is.", "  so it is \n", "  so", " it is."),  # trimmed by the template
        ("A:so it is.", " so it is", " ", "so it is."),
        ("A:so.", "so ", "so ", "."),
        ("A:<\U000fff00b> it is.", "<\U000fff00b> it is", "<b>", " it is."),  # a sign in the content
    ],
)
def test_the_trained_part_begins_after_the_prefill(text, content, prefill, rest):
    assert begins(text, content, prefill) == rest


def test_an_answer_that_a_template_rewrites_is_refused():
    with pytest.raises(Unlabelable, match="rewrites a prefilled answer: message 2"):
        begins("A:SO IT IS.", "so it is", "so")
    with pytest.raises(Unlabelable):
        begins("A:it is.", "it is", "so ")
