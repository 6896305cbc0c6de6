"""sft.merge: the merged model is complete, answers as the adapter does, and overwrites nothing."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sft.config.errors import UserError
from sft.export import merge as merging
from sft.inference.chat_session import open_chat_session
from sft.merge import merge


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of a finished run, to write into."""

    def copy(*overrides: str):
        return shutil.copytree(trained(*overrides), tmp_path / "run", ignore=shutil.ignore_patterns("evaluations"))

    return copy


def test_the_merged_model_has_all_that_serving_takes(copied, settings):
    run = copied()
    output = merge(settings("merge", f"run={run}"))
    merged = run / "merged"
    assert output == str(merged)
    for name in (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "SERVING.md",
        "Modelfile",
    ):
        assert (merged / name).stat().st_size > 0, name
    assert "library_name: transformers" in (merged / "README.md").read_text()
    info = json.loads((merged / "training_info.json").read_text())
    assert info["system"] == "Extract customer, product, issue and urgency as JSON."
    generation = GenerationConfig.from_pretrained(merged)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert generation.do_sample is False
    assert tokenizer.convert_tokens_to_ids(info["stop_tokens"][0]) == generation.eos_token_id[0]
    assert tokenizer.chat_template == info["template"]
    assert (
        info["system"] in (merged / "Modelfile").read_text() and info["system"] in (merged / "SERVING.md").read_text()
    )
    assert not [path.name for path in run.iterdir() if path.name.startswith(".merged")]


@pytest.mark.parametrize("options", [(), ("quant=nf4",)], ids=["plain", "nf4"])
def test_it_answers_as_the_adapter_does_without_being_told_how(copied, settings, options, tmp_path):
    run = copied(*options)
    merge(settings("merge", f"run={run}", f"output={tmp_path / 'out put'}"))
    merged = open_chat_session(settings("chat", f"model.name={tmp_path / 'out put'}", "max_new_tokens=12"))
    full = ("quant=none",) if options else ()
    adapted = open_chat_session(settings("chat", f"run={run}", *full, "max_new_tokens=12"))
    assert merged.system == adapted.system is not None
    for text in ("My phone is broken", "Hello?"):
        assert merged.ask(text) == adapted.ask(text)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out put")
    assert "quantization_config" not in model.config.to_dict()


def test_the_merged_model_has_the_runs_loss(copied, settings, tmp_path):
    from sft.api import compose, evaluate

    run = copied()
    merge(settings("merge", f"run={run}"))
    same = [
        "dataset.eval_sources.known.generator.rows=4",
        "dataset.eval_sources.unseen.generator.rows=4",
        f"hydra.run.dir={tmp_path / 'e'}",
        "evaluation.before=true",
    ]
    found = evaluate(compose(f"model.name={run / 'merged'}", *same, command="evaluate")).metrics
    logged = json.loads((run / "metrics.json").read_text())
    assert found["eval_loss"] == pytest.approx(logged["eval_loss"], abs=1e-4)
    assert found["before_eval_loss"] > found["eval_loss"]


def test_what_is_there_stays_unless_it_may_be_replaced(copied, settings, tmp_path):
    run = copied()
    merge(settings("merge", f"run={run}"))
    with pytest.raises(UserError, match="overwrite=true"):
        merge(settings("merge", f"run={run}"))
    (run / "merged" / "model.safetensors").unlink()
    merge(settings("merge", f"run={run}", "overwrite=true"))
    assert (run / "merged" / "model.safetensors").exists()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("years")
    with pytest.raises(UserError, match="something other than a merged model"):
        merge(settings("merge", f"run={run}", f"output={precious}", "overwrite=true"))
    assert (precious / "thesis").read_text() == "years"


def test_a_merge_that_changes_the_answers_leaves_nothing(copied, settings, monkeypatch):
    run = copied()
    monkeypatch.setattr(merging, "unload_merged", lambda adapted: adapted.unload())
    with pytest.raises(UserError, match="more than rounding"):
        merge(settings("merge", f"run={run}"))
    assert not (run / "merged").exists()


def test_a_full_fine_tune_has_nothing_to_merge(trained, settings):
    run = trained("lora=none")
    with pytest.raises(UserError, match=f"model.name={run / 'model'}"):
        merge(settings("merge", f"run={run}"))
    assert GenerationConfig.from_pretrained(run / "model").do_sample is False
    chat_session = open_chat_session(settings("chat", f"model.name={run / 'model'}", "max_new_tokens=4"))
    assert chat_session.system == open_chat_session(settings("chat", f"run={run}")).system is not None


def test_training_merges_the_same_way(trained):
    run = trained("save_merged_model=true")
    assert (run / "merged" / "Modelfile").exists() and (run / "merged" / "training_info.json").exists()


@pytest.fixture
def pushed(monkeypatch):
    """(repository, directory) of each push; nothing is sent."""
    from sft.hub.push import Push

    sent: list[tuple[str, str]] = []

    def send(push: Push, directory) -> str:
        assert any(directory.glob("*.safetensors"))
        sent.append((push.repository, directory.name))
        return f"https://hub/{push.repository}"

    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    monkeypatch.setattr(Push, "send", send)
    return sent


def test_a_finished_training_is_pushed_and_the_same_command_pushes_again(pushed, tmp_path):
    from sft.api import compose, train
    from tests.runs import TINY

    command = [*TINY, "hub.push=org/name", f"hydra.run.dir={tmp_path / 'run'}"]
    for _ in range(2):
        train(compose(*command))
    train(compose(*TINY, "lora=none", "hub.push=org/whole", f"hydra.run.dir={tmp_path / 'whole'}"))
    assert pushed == [("org/name", "adapter"), ("org/name", "adapter"), ("org/whole", "model")]
    with pytest.raises(UserError, match="save_merged_model=true"):
        compose(*TINY, "hub.push=org/name", "hub.what=merged")


def test_merge_pushes_what_is_asked_for(pushed, copied, settings):
    run = copied()
    assert merge(settings("merge", f"run={run}", "hub.push=org/name")) == "https://hub/org/name"
    merge(settings("merge", f"run={run}", "hub.push=org/lora", "hub.what=adapter"))
    assert pushed == [("org/name", "merged"), ("org/lora", "adapter")]


def test_what_a_run_pushed_is_not_pushed_again_by_merging_it(pushed, copied, settings):
    run = copied()
    config = run / "config.resolved.yaml"
    config.write_text(config.read_text().replace("push: null", "push: org/name"))
    merge(settings("merge", f"run={run}"))
    assert "push: org/name" in config.read_text() and pushed == []
