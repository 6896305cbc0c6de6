"""`evaluation=lm_eval` at the end of training and for a finished run: the same scores, also of the base."""

from __future__ import annotations

import json

import pytest

from sft.api import evaluate

TASK = """
task: own_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}="
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture(scope="session")
def asks(tmp_path_factory) -> tuple[str, ...]:
    """The overrides that ask for a task of our own."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"{i}+2", "choices": [str(i + 2), str(i + 13)], "label": i % 2} for i in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.yaml").write_text(TASK.format(file=folder / "rows.jsonl"))
    return (
        "evaluation=lm_eval",
        "evaluation.tasks=[own_sums]",
        f"evaluation.include_path={folder}",
        "evaluation.before=true",
    )


def figures(metrics: dict) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "lm_eval_" in name}


@pytest.mark.parametrize(
    "options", [(), pytest.param(("quant=nf4",), marks=pytest.mark.slow)], ids=["lora", "4-bit base"]
)
def test_benchmarks_after_training_are_reproduced_by_evaluate(trained, asks, options):
    run = trained(*asks, *options)
    logged = figures(json.loads((run / "metrics.json").read_text()))
    names = {f"{when}lm_eval_own_sums_{name}" for when in ("", "before_") for name in ("acc", "acc_norm")}
    assert set(logged) == names
    found = evaluate(run)  # the evaluation is what the run was trained with
    assert figures(found.metrics) == logged
    assert "own_sums" in str(found) and "fine-tuned" in str(found)
    whole = json.loads((found.directory / "lm_eval.json").read_text())
    assert (
        whole["results"]["own_sums"]["acc"] == logged["lm_eval_own_sums_acc"]
        and "acc_stderr" in whole["results"]["own_sums"]
    )
    assert len((found.directory / "lm_eval_samples.jsonl").read_text().splitlines()) == 12


def test_benchmarks_do_not_change_the_trained_weights(trained, asks):
    with_them, without = (trained(*options) / "adapter" / "adapter_model.safetensors" for options in (asks, ()))
    assert with_them.read_bytes() == without.read_bytes()
