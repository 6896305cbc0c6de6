"""`sft.evaluate` with a judge: verdicts in every file, missing ones reported, the key nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft.api import compose, evaluate
from sft.config.errors import UserError

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-no-known-form"
SMALL = ("evaluation=compare", "evaluation.max_new_tokens=6", "evaluation.max_samples=2", "evaluation.generate=only")
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def ask(service, tmp_path):
    """Overrides -> those of an evaluation that the service judges."""
    cache = f"judge.cache={tmp_path / 'cache'}"
    metrics = "judge.metrics=[correctness,hallucination]"
    return lambda *more: (*SMALL, "judge=gemini", f"judge.base_url={service.url}", metrics, cache, *more)


@pytest.fixture
def command_process(command):
    """Arguments and variables -> the ended process of an evaluation."""
    keys = {"GEMINI_API_KEY": KEY, "GOOGLE_API_KEY": ""}
    return lambda *arguments, **environment: command("evaluate", *arguments, env={**keys, **environment})


def files_of(*directories: Path) -> str:
    return "".join(p.read_text() for directory in directories for p in directory.rglob("*") if p.is_file())


def test_verdicts_of_base_and_fine_tuned_are_in_every_file(trained, service, ask, monkeypatch, tmp_path):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    service.say = lambda prompt: json.dumps(
        {"reason": f"{HOSTILE} {KEY}", "score": 3 if "correctness" in prompt else 10}
    )
    found = evaluate(trained(), *ask())
    metrics = json.loads((found.directory / "metrics.json").read_text())
    expected = {"judge": "gemini-2.5-flash", "judge_correctness": 0.3, "judge_hallucination": 1.0, "judge_missing": 0}
    assert expected.items() <= metrics.items() and metrics["status"] == "finished"
    assert metrics["judge_known_correctness"] == metrics["before_judge_correctness"] == 0.3
    assert metrics["judge_verdicts"] == metrics["before_judge_verdicts"] == 8
    lines = [json.loads(line) for line in (found.directory / "samples.jsonl").read_text().splitlines()]
    assert all(
        line["judge"]["correctness"]["score"] == line["base_judge"]["correctness"]["score"] == 0.3 for line in lines
    )
    page = (found.directory / "samples.html").read_text()
    assert "&lt;script&gt;alert(1)" in page and "<script" not in page
    assert "judge: hallucination (lower is better)" in str(found) and "judge: correctness" in str(found)
    assert KEY not in files_of(found.directory, tmp_path / "cache")
    before = len(service.calls)
    assert before == len(set(service.calls))
    assert evaluate(trained(), *ask()).metrics["judge_calls"] == 0 and len(service.calls) == before


@pytest.mark.slow
def test_missing_verdicts_exit_with_1_and_are_requested_again(trained, service, ask, tmp_path, command_process):
    service.say = lambda prompt: "no idea" if "hallucination" in prompt else '{"reason": "r", "score": 5}'
    out = tmp_path / "out"
    settings = (*ask("evaluation.before=false", "judge.retries=0", "judge.concurrency=1"), f"hydra.run.dir={out}")
    done = command_process(f"run={trained()}", *settings)
    assert done.returncode == 1, done.stderr
    assert "4 of 8 verdicts are missing, the others are scored" in done.stderr
    assert "known row 1, hallucination: the judge's answer is not a JSON object: 'no idea'" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout.rstrip().endswith(str(out))
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["judge_correctness"], metrics["judge_missing"]) == (0.5, 4) and "judge_hallucination" not in metrics
    assert KEY not in done.stderr + done.stdout + files_of(out)


def test_a_missing_key_is_reported_before_a_model_is_searched(tmp_path, command_process):
    from omegaconf import OmegaConf

    from sft.config.compose import plain  # the config of a run that has no weights, nor ever had a judge

    run = tmp_path / "run"
    run.mkdir()
    OmegaConf.save(OmegaConf.create(plain(compose("experiment=smoke"))), run / "config.resolved.yaml")
    done = command_process(f"run={run}", "judge=gemini", GEMINI_API_KEY="")
    assert done.returncode == 2 and "GEMINI_API_KEY or GOOGLE_API_KEY is not set" in done.stderr
    assert list(run.iterdir()) == [run / "config.resolved.yaml"]


def test_judge_none_composes_and_can_be_swept(settings, monkeypatch):
    monkeypatch.setattr(
        "sft.config.checks.requirements._installed", lambda module: True
    )  # DeepEval has an environment of its own
    assert settings("evaluate", "judge=none")["judge"] is None and settings("evaluate")["judge"] is None
    from sft.config.compose import check_command, config_loader

    check_command(
        config_loader(), "evaluate", ["judge=none,gemini,openai,local,deepeval", "model=tiny"], "evaluate", True
    )
    with pytest.raises(UserError, match=r"did you mean judge\.retries\?"):
        compose("judge=local", "judge.retris=1", command="evaluate")
    with pytest.raises(UserError, match="did you mean correctness"):
        compose("judge=local", "judge.metrics=[corectness]", command="evaluate")


def test_whole_conversations_are_replayed(trained, tmp_path):
    rows = tmp_path / "rows.jsonl"
    turns = [("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2")]
    rows.write_text(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}) + "\n")
    own = ("dataset=local", f"dataset.path={rows}", "evaluation=generate", "evaluation.max_new_tokens=4")
    found = evaluate(
        trained(), *own, "evaluation.turns=all", "evaluation.generate=only", f"hydra.run.dir={tmp_path / 'out'}"
    )
    first, second = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert (first["turn"], second["turn"], first["reference"], second["reference"]) == (0, 1, "1", "2")
    said = [message["content"] for message in second["messages"] if message["role"] == "assistant"]
    assert said == [first["answer"]] and found.metrics["eval_answers"] == 2
