"""From conversations to scores, tables and pages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sft.config.errors import UserError
from sft.evaluation.answers import Answers, Scored, evaluate_generation
from sft.evaluation.compare import format_table, pick, sample_table, score_table
from sft.evaluation.generate import Answer
from sft.evaluation.metrics import score
from sft.evaluation.questions import Question, make_questions
from sft.evaluation.samples import samples_html, samples_jsonl
from sft.evaluation.spec import Evaluation


def conversation(*turns: str) -> dict:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}


def answered(source: str, row: int, reference: str, text: str) -> Scored:
    question = Question(source, row, [{"role": "user", "content": f"ask {row}"}], "prompt", reference)
    return Scored(question, Answer(text, 3, True), score(text, reference))


RECORD = '{"name": "Ana", "age": 3}'
AFTER = Answers(
    [
        answered("known", 0, RECORD, RECORD),
        answered("known", 1, RECORD, '{"name": "Ana", "age": 4}'),
        answered("unseen", 0, RECORD, "<b>no</b> & nothing"),
    ]
)
BEFORE = Answers([answered(row.question.source, row.question.row, RECORD, "Sure!") for row in AFTER.rows])


def test_a_prompt_ends_where_the_last_answer_begins(bound: Any) -> None:
    found = make_questions(bound, [conversation("a", "b", "c", "d", "e")], "s")
    assert len(found) == 1
    assert found[0].reference == "d"
    assert [message["content"] for message in found[0].messages] == ["a", "b", "c"]
    assert found[0].prompt.endswith("<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")


def test_raw_text_and_rows_without_an_answer_yield_no_prompt(bound: Any) -> None:
    rows = [{"text": "raw"}, conversation("only a question"), conversation("q", "a")]
    assert [question.row for question in make_questions(bound, rows, "s")] == [2]


def test_the_limit_counts_prompts(bound: Any) -> None:
    rows = [{"text": "raw"}] + [conversation(f"q{i}", f"a{i}") for i in range(5)]
    assert [question.reference for question in make_questions(bound, rows, "s", 2)] == ["a0", "a1"]


def test_a_tool_call_reference_uses_the_templates_notation(bound: Any) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert make_questions(bound, [{"messages": messages}], "s")[0].reference == "<call>weather</call>"


def test_generation_reports_each_source_and_all(bound: Any, build_model: Any, tokenizer: Any) -> None:
    sources = {"known": [conversation("q", "a")] * 3, "unseen": [conversation("q", RECORD)]}
    spec = Evaluation(generate=True, max_new_tokens=4, batch_size=2, max_samples=2)
    answers = evaluate_generation(build_model(), tokenizer, bound, sources, spec)
    assert [(row.question.source, row.question.row) for row in answers.rows] == [
        ("known", 0),
        ("known", 1),
        ("unseen", 0),
    ]
    metrics = answers.metrics()
    assert metrics["eval_answers"] == 3
    assert {"eval_exact_match", "eval_known_exact_match", "eval_unseen_json_valid"} <= set(metrics)
    assert "eval_known_json_valid" not in metrics
    assert answers.seconds > 0


def test_metrics_are_means_by_source() -> None:
    metrics = AFTER.metrics("test_")
    assert metrics["test_exact_match"] == pytest.approx(1 / 3)
    assert metrics["test_known_exact_match"] == 0.5
    assert metrics["test_unseen_json_valid"] == 0.0
    assert AFTER.fields("known") == {"name": 1.0, "age": 0.5}
    assert Answers().metrics() == {}


def test_the_table_shows_before_and_after_of_each_part() -> None:
    lines = score_table(AFTER, BEFORE).splitlines()
    assert lines[0].split() == ["part", "rows", "score", "before", "after"]
    assert lines[2].split() == ["known", "2", "exact", "match", "0.0%", "50.0%"]
    assert "    age" in score_table(AFTER)
    parts = [line.split()[0] for line in lines[2:] if not line.startswith(" ")]
    assert parts == ["known", "unseen", "all"]
    assert "before" not in score_table(AFTER).splitlines()[0]


def test_the_table_shows_the_number_of_rows_answered_before_training() -> None:
    fewer = Answers([next(row for row in BEFORE.rows if row.question.source == source) for source in BEFORE.sources])
    lines = score_table(AFTER, fewer).splitlines()
    assert "before (first 1)" in lines[0]
    assert lines[2].split()[:4] == ["known", "2", "exact", "match"]  # rows are those of the model after


def test_fewer_rows_can_be_answered_before_training() -> None:
    assert Evaluation().of_before().max_samples is None
    assert Evaluation(max_samples=5).of_before().max_samples == 5
    assert Evaluation(before_samples=8).of_before().max_samples == 8
    assert Evaluation(max_samples=5, before_samples=8).of_before().max_samples == 5


def test_samples_alternate_between_sources() -> None:
    assert [(row.question.source, row.question.row) for row in pick(AFTER, 2)] == [("known", 0), ("unseen", 0)]
    text = sample_table(AFTER, BEFORE, 2)
    assert text.count("before    Sure!") == 2
    assert text.count("(differs)") == 1
    assert sample_table(Answers()) == ""


def test_columns_are_aligned() -> None:
    assert (
        format_table(["a", "n"], [["xyz", "1.0%"], ["", "10.0%"]]) == "a        n\n---  -----\nxyz   1.0%\n     10.0%"
    )
    assert format_table(["a"], []) == "a\n-"


def test_samples_jsonl_holds_every_answer() -> None:
    lines = [json.loads(line) for line in samples_jsonl(AFTER, BEFORE).splitlines()]
    assert [line["answer"] for line in lines] == [row.answer.text for row in AFTER.rows]
    assert lines[1]["base_answer"] == "Sure!"
    assert lines[1]["scores"]["json_field_accuracy"] == 0.5
    assert "base_answer" not in json.loads(samples_jsonl(AFTER).splitlines()[0])


def test_samples_html_escapes_answers_and_data() -> None:
    hostile = Answers([answered("<script>", 0, "</pre><script>alert(1)</script>", '"><img src=x onerror=y>')])
    page = samples_html(hostile, hostile, title="<title>")
    assert "<script>" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<article>") == 1
    assert samples_html(AFTER, count=2).count("<article>") == 2


def test_all_invalid_settings_are_reported_together() -> None:
    with pytest.raises(UserError) as caught:
        Evaluation(temperature=-1.0, max_samples=0, top_p=0.0)
    text = str(caught.value)
    assert all(key in text for key in ("evaluation.temperature", "evaluation.max_samples", "evaluation.top_p"))


@pytest.mark.parametrize(
    ("generate", "generates", "loss"), [(False, False, True), (True, True, True), ("only", True, False)]
)
def test_generate_accepts_true_false_and_only(generate: Any, generates: bool, loss: bool) -> None:
    spec = Evaluation(generate=generate)
    assert (spec.generates, spec.measures_loss) == (generates, loss)
