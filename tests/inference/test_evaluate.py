"""Evaluating a finished run: the same metrics for every form of the weights."""

from __future__ import annotations

import json

import pytest

from sft.api import compose, evaluate
from sft.config.errors import UserError

ANSWERS = ("evaluation=compare", "evaluation.max_new_tokens=6", "evaluation.max_samples=2")


def logged(run) -> dict:
    return json.loads((run / "metrics.json").read_text())


def losses(figures: dict) -> dict[str, float]:
    return {key: value for key, value in figures.items() if key.startswith("eval_") and key.endswith("loss")}


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("lora=none",),
        ("quant=nf4",),
        ("model.dtype=bfloat16", "trainer.bf16=true"),
        ("dataset.eval_sources=null", "dataset.eval_fraction=0.25"),
        ("dataset.packing=true", "dataset.max_length=256"),
    ],
    ids=lambda options: " ".join(options) or "lora",
)
def test_evaluating_a_run_reproduces_its_logged_loss(trained, options):
    run = trained(*options)
    found = evaluate(run).metrics
    rounding = 1e-4 if "trainer.bf16=true" in options else 1e-5
    assert losses(found) == pytest.approx(losses(logged(run)), abs=rounding, rel=0)
    assert len(losses(found)) == (1 if "eval_fraction" in str(options) else 3)


def test_base_and_fine_tuned_are_shown_side_by_side(trained):
    run = trained()
    found = evaluate(run, *ANSWERS)
    metrics = json.loads((found.directory / "metrics.json").read_text())
    assert found.directory.parent == run / "evaluations"
    assert metrics["before_eval_loss"] > metrics["eval_loss"] == pytest.approx(logged(run)["eval_loss"], abs=1e-5)
    assert {"eval_exact_match", "eval_f1", "eval_rouge_l", "eval_json_valid", "before_eval_known_exact_match"} <= set(
        metrics
    )
    assert set(metrics["eval_fields"]) == {"customer", "product", "issue", "urgency"}
    lines = [json.loads(line) for line in (found.directory / "samples.jsonl").read_text().splitlines()]
    assert [(line["source"], line["row"]) for line in lines] == [(s, r) for s in ("known", "unseen") for r in (0, 1)]
    assert all({"answer", "base_answer", "reference", "scores"} <= set(line) for line in lines)
    assert "<article>" in (found.directory / "samples.html").read_text()
    table = str(found)
    assert "fine-tuned" in table and "token accuracy" in table and table.endswith(str(found.directory))


def test_the_base_of_a_full_fine_tune_is_the_model_before_training(trained):
    whole, adapted = (evaluate(trained(*o), "evaluation.before=true").metrics for o in (("lora=none",), ()))
    assert whole["before_eval_loss"] == pytest.approx(adapted["before_eval_loss"], abs=1e-5)
    assert whole["eval_loss"] < whole["before_eval_loss"]


def test_generate_only_computes_no_loss(trained):
    found = evaluate(trained(), *ANSWERS, "evaluation.generate=only", "evaluation.before=false")
    assert "eval_loss" not in found.metrics and found.metrics["eval_answers"] == 4


def test_a_base_model_is_evaluated_on_all_given_rows(trained, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{i} + 1 =", "response": str(i + 1)}) + "\n" for i in range(12)))
    own = ("dataset=local", f"dataset.path={rows}", "evaluation=generate", "evaluation.max_new_tokens=2")
    config = compose("model=tiny", *own, f"hydra.run.dir={tmp_path / 'bare'}", command="evaluate")
    bare = evaluate(config)
    assert bare.directory == tmp_path / "bare" and bare.metrics["eval_answers"] == 12
    tuned = evaluate(trained(), *own, f"hydra.run.dir={tmp_path / 'tuned'}")
    assert tuned.metrics["eval_answers"] == 12 and tuned.metrics["eval_loss"] != bare.metrics["eval_loss"]
    asked = json.loads((tmp_path / "tuned" / "samples.jsonl").read_text().splitlines()[0])
    assert "Extract customer, product, issue and urgency as JSON." in asked["prompt"]  # the training's system prompt
    assert "Extract" not in (tmp_path / "bare" / "samples.jsonl").read_text()


def test_a_different_base_than_the_trained_one_is_refused(trained, tmp_path):
    import shutil

    from sft.model.spec import TinyModel

    other = tmp_path / "other"
    shutil.copytree(TinyModel().locate(), other)
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    size = int.from_bytes(content[:8], "little")
    content[8 + size] ^= 1  # one bit of the first tensor
    weights.write_bytes(bytes(content))
    with pytest.raises(UserError, match="not the base"):
        evaluate(trained(), f"model.name={other}")


def test_a_run_without_weights_says_how_to_resume(trained, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(trained(), run, ignore=shutil.ignore_patterns("adapter", "checkpoints", ".lock"))
    with pytest.raises(UserError, match=f"hydra.run.dir={run}"):
        evaluate(run)


def test_two_evaluations_in_the_same_second_have_separate_directories(tmp_path):
    from sft.inference.evaluated import free_directory
    from sft.run.directory import RunDirectory

    taken = tmp_path / "evaluations" / "now"
    taken.mkdir(parents=True)
    (taken / "metrics.json").touch()
    assert free_directory(RunDirectory(taken)).path == taken.with_name("now-2")
    given = tmp_path / "mine"
    given.mkdir()
    (given / "metrics.json").touch()
    assert free_directory(RunDirectory(given)).path == given
