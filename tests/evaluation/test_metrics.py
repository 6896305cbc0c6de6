"""Text metrics compared with known values and with slow, simple implementations."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.evaluation import metrics

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def slow_lcs(a: list, b: list) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(st.text("abcd", max_size=80), st.text("abcde", max_size=80))
def test_longest_common_subsequence_is_that_of_the_table(a: str, b: str) -> None:
    assert metrics.longest_common_subsequence(a, b) == slow_lcs(list(a), list(b))


@given(st.text(max_size=60), st.text(max_size=60))
def test_scores_are_shares_and_perfect_for_the_reference_itself(answer: str, reference: str) -> None:
    assert all(0.0 <= value <= 1.0 for value in metrics.score(answer, reference).values())
    assert set(metrics.score(reference, reference).values()) == {1.0}


@pytest.mark.parametrize(
    ("answer", "reference", "f1", "rouge"),
    [
        ("the cat sat", "the cat sat", 1.0, 1.0),
        ("The cat, sat!", "the cat sat", 1.0, 1.0),
        ("sat cat the", "the cat sat", 1.0, 1 / 3),
        ("the the the", "the cat", 2 / 5, 2 / 5),
        ("dog", "the cat sat", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        ("", "cat", 0.0, 0.0),
        ("我喜欢猫", "我喜欢狗", 0.75, 0.75),
        ("Straße", "STRASSE", 1.0, 1.0),
    ],
)
def test_f1_and_rouge_l(answer: str, reference: str, f1: float, rouge: float) -> None:
    assert metrics.token_f1(answer, reference) == pytest.approx(f1)
    assert metrics.rouge_l(answer, reference) == pytest.approx(rouge)


def test_exact_match_only_ignores_surrounding_white_space() -> None:
    assert metrics.exact_match(" yes\n", "yes") == 1.0
    assert metrics.exact_match("Yes", "yes") == 0.0
    assert metrics.exact_match('{"a":1}', '{"a": 1}') == 0.0


@given(JSON)
def test_json_equals_itself(value: object) -> None:
    assert metrics.same_json(value, json.loads(json.dumps(value)))
    assert metrics.parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text", ["", "NaN", "[Infinity]", '{"a": 1} {"a": 1}', "```json\n{}\n```", "{'a': 1}", "[" * 5000]
)
def test_invalid_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        metrics.parse_json(text)


def test_deep_nesting_is_refused_before_recursion() -> None:
    deep = "[" * 500 + "]" * 500
    with pytest.raises(ValueError, match="deeply"):
        metrics.parse_json(deep)
    assert metrics.score(deep, '{"a": 1}')["json_valid"] == 0.0


def test_true_is_not_one_but_one_is_one_point_zero() -> None:
    assert not metrics.same_json({"a": True}, {"a": 1})
    assert metrics.same_json({"a": [1]}, {"a": [1.0]})
    assert not metrics.same_json({"a": 1}, {"a": 1, "b": 2})


def test_json_is_scored_by_field_in_any_order() -> None:
    reference = '{"name": "Ana", "tags": ["x", "y"], "age": null}'
    found = metrics.score('{"age": null, "tags": ["x", "z"], "name": "Ana"}', reference)
    assert found["json_valid"] == 1.0
    assert found["json_match"] == 0.0
    assert found["json_field_accuracy"] == 0.75
    spaced = metrics.score('{"age":null,"tags":["x","y"],"name":"Ana"}', reference)
    assert (spaced["exact_match"], spaced["json_match"], spaced["json_field_accuracy"]) == (0.0, 1.0, 1.0)


def test_a_missing_field_differs_from_null() -> None:
    assert metrics.field_matches("{}", {"age": None}) == {"age": 0.0}
    assert metrics.field_matches("no json", {"a": 1, "b": {"c": 2}}) == {"a": 0.0, "b.c": 0.0}


def test_text_references_have_no_json_scores() -> None:
    assert set(metrics.score("{}", "a sentence")) == {"exact_match", "f1", "rouge_l"}
    assert set(metrics.score("4", "4")) == {"exact_match", "f1", "rouge_l"}


def test_means_only_include_rows_with_a_score() -> None:
    rows = [metrics.score("x", "x"), metrics.score("[1]", "[1]"), metrics.score("bad", "[1]")]
    mean = metrics.mean_scores(rows)
    assert mean["exact_match"] == pytest.approx(2 / 3)
    assert mean["json_valid"] == 0.5
    assert metrics.mean_scores([]) == {}


def test_field_accuracies_name_each_field() -> None:
    references = ['{"a": 1, "b": 2}', '{"a": 1, "b": 3}', "plain"]
    answers = ['{"a": 1, "b": 0}', '{"a": 1, "b": 3}', "plain"]
    assert metrics.field_accuracies(answers, references) == {"a": 1.0, "b": 0.5}


@given(st.floats(0, 700))
@settings(max_examples=20)
def test_perplexity(loss: float) -> None:
    assert metrics.perplexity(loss) == math.exp(loss)
    assert metrics.perplexity(1000.0) == math.inf
