"""The page's models: which are offered, what is loaded for them, and what is reused."""

from __future__ import annotations

import os

import pytest

from sft.api import compose
from sft.config.compose import plain
from sft.config.errors import UserError
from sft.inference.chat_session import open_chat_session
from sft.inference.web.model_pool import ModelPool, with_4bit_base
from sft.inference.web.runs import finished_runs
from sft.run.directory import RunDirectory


@pytest.fixture
def runs(trained, tmp_path):
    """outputs/ with two runs, one that has not ended, and one without weights."""
    outputs = tmp_path / "outputs"
    (outputs / "a" / "sweep").mkdir(parents=True)
    os.symlink(trained(), outputs / "a" / "one")
    os.symlink(trained("lora.r=4"), outputs / "a" / "sweep" / "2_lora.r-4")
    for name, status in {"running": "running", "empty": "finished"}.items():
        RunDirectory(outputs / name).write_json("run.json", {"status": status})
    return outputs


def test_finished_runs_with_weights_are_offered(runs, settings):
    assert sorted(finished_runs(runs)) == ["a/one", "a/sweep/2_lora.r-4"]
    assert finished_runs(runs / "nowhere") == {}
    pool = ModelPool(settings("webui", f"run={runs}/a/one"))
    assert pool.names == ["a/one", "a/sweep/2_lora.r-4"]
    assert ModelPool(settings("webui", "model=tiny", f"runs_dir={runs}")).names[1:] == sorted(
        finished_runs(runs), reverse=True
    )
    with pytest.raises(UserError, match="there is no such run"):
        pool.summary("../outputs/a/one")


def test_adapters_on_the_same_base_share_it(runs, settings):
    pool = ModelPool(settings("webui", f"run={runs}/a/one", "max_new_tokens=12"))
    with pool.lock:
        first = pool.open("a/one")
        said = first.chat_session.ask("hello")
        base = first.chat_session.model.get_base_model()
        second = pool.open("a/sweep/2_lora.r-4")
        assert second.chat_session.model.get_base_model() is base and not pool.is_open("a/one")
        assert second.chat_session.model.peft_config["default"].r == 4
        chat = open_chat_session(plain(compose(f"run={runs}/a/sweep/2_lora.r-4", command="chat")))
        assert second.chat_session.ask("hello") == chat.ask("hello")
        again = pool.open("a/one").chat_session
        again.messages.clear()
        assert again.ask("hello") == said
        pool.close()


def test_a_base_can_be_loaded_in_4_bits(trained, settings):
    from bitsandbytes.nn import Linear4bit

    config = with_4bit_base(settings("webui", f"run={trained()}", "max_new_tokens=12"))
    assert config["quant"]["bnb_4bit_quant_type"] == "nf4" and with_4bit_base(config) == config
    pool = ModelPool(config)
    with pool.lock:
        chat_session = pool.open(pool.first).chat_session
        assert any(isinstance(module, Linear4bit) for module in chat_session.model.modules())
        chat = open_chat_session(plain(compose(f"run={trained()}", "max_new_tokens=12", "quant=nf4", command="chat")))
        assert chat_session.ask("hello") == chat.ask("hello")


def test_a_base_model_has_no_base_to_compare_with(settings):
    pool = ModelPool(settings("webui", "model=tiny", "runs_dir=."))
    summary = pool.summary(pool.first)
    assert (summary.system, summary.has_base, summary.facts) == ("", False, "not trained by sft")
    with pool.lock, pytest.raises(UserError, match="no base to compare with"), pool.open(pool.first).as_base():
        pass
