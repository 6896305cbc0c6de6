"""Adapters that were trained elsewhere, or whose run is missing: chat, evaluate and merge accept them."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM

from sft.config.errors import UserError
from sft.inference.chat_session import open_chat_session
from sft.merge import merge

# What other trainers leave beside the two files of the adapter.
PLAIN = ("adapter_config.json", "adapter_model.safetensors")
WITH_TOKENIZER = (*PLAIN, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
WITH_INFO = (*WITH_TOKENIZER, "training_info.json")


@pytest.fixture
def bare(trained, tmp_path):
    """Names of files -> a directory with these of a run's adapter, far from the run."""

    def make(*names):
        target = tmp_path / "an adapter, elsewhere"
        target.mkdir()
        for name in names:
            shutil.copy(trained() / "adapter" / name, target / name)
        return target

    return make


def answers(chat_session):
    return [chat_session.ask(text) for text in ("My phone is broken", "Hello?")]


def test_a_runs_adapter_directory_means_the_run(trained, settings):
    run = trained()
    assert (run / "adapter" / "training_info.json").read_bytes() == (run / "training_info.json").read_bytes()
    whole = open_chat_session(settings("chat", f"run={run}", "max_new_tokens=12"))
    part = open_chat_session(settings("chat", f"run={run / 'adapter'}", "max_new_tokens=12"))
    assert part.system == whole.system is not None
    assert answers(part) == answers(whole)
    assert settings("merge", f"run={run / 'adapter'}")["run"] == str(run)


@pytest.mark.parametrize("files", [PLAIN, WITH_TOKENIZER, WITH_INFO], ids=["plain peft", "with tokenizer", "of sft"])
def test_a_bare_adapter_is_loaded_on_the_base_it_names(trained, bare, settings, files):
    adapter = bare(*files)
    whole = open_chat_session(settings("chat", f"run={trained()}", "max_new_tokens=12"))
    system = [] if "training_info.json" in files else [f"system={whole.system}"]
    found = open_chat_session(settings("chat", f"run={adapter}", "max_new_tokens=12", *system))
    assert found.system == whole.system
    if files == PLAIN:  # neither template nor tokenizer is known: the model's own are taken
        found.template, found.tokenizer, found.stop_tokens = whole.template, whole.tokenizer, whole.stop_tokens
    assert answers(found) == answers(whole)
    named = open_chat_session(
        settings("chat", "model=tiny", "model.dtype=float32", f"model.adapter={adapter}", *system)
    )
    assert type(named.model).__name__ == "PeftModelForCausalLM"


def test_a_bare_adapter_is_merged_into_the_given_directory(trained, bare, settings, tmp_path, assert_near):
    import torch

    from sft.export.reload import logits_of

    adapter = bare(*WITH_TOKENIZER)
    with pytest.raises(UserError, match=r"output: an adapter without its run needs an output directory"):
        merge(settings("merge", f"run={adapter}"))
    output = tmp_path / "merged"
    assert merge(settings("merge", f"run={adapter}", f"output={output}")) == str(output)
    of_run = tmp_path / "of the run"
    merge(settings("merge", f"run={trained()}", f"output={of_run}"))
    ids = torch.arange(40).reshape(2, 20) * 7 + 300
    first, second = (AutoModelForCausalLM.from_pretrained(each) for each in (output, of_run))
    assert_near(logits_of(first, ids), logits_of(second, ids))
    info = json.loads((output / "training_info.json").read_text())
    assert info["template"] == (adapter / "chat_template.jinja").read_text()
    assert (output / "README.md").is_file() and (output / "Modelfile").is_file()


@pytest.mark.parametrize("files", [WITH_TOKENIZER, WITH_INFO], ids=["with tokenizer", "of sft"])
def test_a_bare_adapter_is_evaluated(trained, bare, tmp_path, files):
    from sft.api import compose, evaluate

    adapter = bare(*files)
    rows = [
        "dataset=tickets",
        "dataset.eval_sources.known.generator.rows=4",
        "dataset.eval_sources.unseen.generator.rows=4",
        "dataset.num_proc=0",
    ]
    whole = evaluate(compose(f"run={trained()}", f"hydra.run.dir={tmp_path / 'a'}", command="evaluate"))
    part = evaluate(compose(f"run={adapter}", *rows, f"hydra.run.dir={tmp_path / 'b'}", command="evaluate"))
    assert part.metrics["eval_loss"] == pytest.approx(whole.metrics["eval_loss"], rel=1e-6)


def test_missing_files_and_settings_are_reported(trained, bare, settings):
    adapter = bare(*PLAIN)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/nowhere/base"}))
    with pytest.raises(UserError, match="was trained on /nowhere/base, which does not exist on this machine"):
        settings("chat", f"run={adapter}")
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(UserError, match="does not say which base it was trained on"):
        settings("chat", f"run={adapter}")
    with pytest.raises(UserError, match="no adapter is named"):
        merge(settings("merge"))
    with pytest.raises(UserError, match="the run has an adapter of its own"):
        open_chat_session(settings("chat", f"run={trained()}", f"model.adapter={adapter}"))
