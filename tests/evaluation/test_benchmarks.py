"""Benchmarks through lm-eval itself, with tasks from local files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from sft.config.errors import UserError
from sft.evaluation import tasks as lm_eval_tasks
from sft.evaluation.benchmarks import benchmark_table, run_benchmarks
from sft.evaluation.spec import LmEval
from sft.evaluation.tasks import prepare_tasks

COMMON = """
task: {name}
dataset_path: {data}
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "{{{{question}}}}="
metadata: {{version: 1.0}}
"""
CHOICE = """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}]
"""
GENERATE = """
output_type: generate_until
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 3, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A directory with a multiple-choice and a generating task over eight sums, and one whose data is on the hub."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"{i}+2", "choices": [str(i + 2), str(i + 13)], "label": i % 2} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, data, kind in (
        ("own_choice", "json", CHOICE),
        ("own_text", "json", GENERATE),
        ("far", "some/where", CHOICE),
    ):
        text = COMMON.format(name=name, data=data, file=folder / "rows.jsonl") + kind
        (folder / f"{name}.yaml").write_text(text)
    return folder


def log_likelihood(model, tokenizer, text: str, continuation: str) -> float:
    import torch

    start, whole = (tokenizer(each)["input_ids"] for each in (text, text + continuation))
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([whole])).logits[0].float().log_softmax(-1)
    return sum(float(logs[i - 1, whole[i]]) for i in range(len(start), len(whole)))


def test_scores_follow_from_the_models_probabilities_and_answers(tasks, build_model, tokenizer):
    import torch

    from sft.evaluation.generate import generate_answers

    model = build_model()
    spec = LmEval(tasks=["own_choice", "own_text"], include_path=str(tasks), batch_size=4)
    random.seed(5)
    torch.manual_seed(5)
    states = random.getstate(), torch.random.get_rng_state()
    found = run_benchmarks(model, tokenizer, spec)
    rows = [json.loads(line) for line in (tasks / "rows.jsonl").read_text().splitlines()]
    right = 0
    for row in rows:
        # the task's own way: a space stands before a choice
        scores = [log_likelihood(model, tokenizer, f"{row['question']}=", f" {choice}") for choice in row["choices"]]
        right += scores.index(max(scores)) == row["label"]
    assert found.results["own_choice"]["acc"] == right / 8
    prompts = [f"{row['question']}=" for row in rows]
    answers = generate_answers(model, tokenizer, prompts, stop_tokens=["\n"], max_new_tokens=3)
    said = {s["doc"]["question"]: s["filtered_resps"] for s in found.samples if s["task"] == "own_text"}
    assert [said[row["question"]][0].strip() for row in rows] == answers
    assert found.metrics().keys() == {"lm_eval_own_choice_acc", "lm_eval_own_text_exact_match"}
    assert found.about["own_choice"] == {"version": 1.0, "num_fewshot": 0, "questions": 8}
    assert random.getstate() == states[0] and torch.equal(torch.random.get_rng_state(), states[1])
    assert "tie_weights" not in vars(model) and tokenizer.pad_token == "<pad>"
    table = benchmark_table(found, found, ("base", "fine-tuned"))
    assert f"{right / 8:.4f} ± " in table and "own_text" in table


def test_a_limit_reduces_the_questions(tasks, build_model, tokenizer):
    spec = LmEval(tasks=[str(tasks / "own_choice.yaml")], limit=3)
    assert run_benchmarks(build_model(), tokenizer, spec).about["own_choice"]["questions"] == 3


def test_unavailable_data_is_reported_before_a_model_is_loaded(tasks):
    with pytest.raises(UserError, match=r"the data of task 'far' is not on this machine(.|\n)*include_path=DIR"):
        prepare_tasks(LmEval(tasks=["far"], include_path=str(tasks)))
    with pytest.raises(UserError, match="there is no such directory"):
        prepare_tasks(LmEval(tasks=["far"], include_path=str(tasks / "nowhere")))


@pytest.mark.slow  # lm-eval reads its thousands of task files
def test_an_unknown_task_is_reported_with_the_nearest(tasks):
    for name, near in (("own_choise", "own_choice"), ("hellaswg", "hellaswag")):
        with pytest.raises(UserError, match=f"there is no task '{name}'(.|\n)*did you mean {near}"):
            prepare_tasks(LmEval(tasks=[name], include_path=str(tasks)))


def test_missing_lm_eval_is_reported_with_the_extra_to_install(monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    lm_eval_tasks._task_manager.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'sft\[eval\]'"):
        prepare_tasks(LmEval(tasks=["arc_easy"]))


def test_invalid_settings_are_reported():
    for given, key in (({"tasks": []}, "tasks"), ({"limit": 1.5}, "limit"), ({"num_fewshot": -1}, "num_fewshot")):
        with pytest.raises(UserError, match=f"evaluation.{key}"):
            LmEval(**{"tasks": ["arc_easy"], **given})
