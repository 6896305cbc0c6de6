"""The models of the page: which are offered, what is loaded for them, and what is kept from one to the next."""

from __future__ import annotations

import os

import pytest

from sft.api import compose
from sft.config.compose import plain
from sft.config.errors import UserError
from sft.inference.talk import open_talk
from sft.inference.web.runs import finished_runs
from sft.inference.web.shelf import Shelf, in_four_bits
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


def test_runs_that_have_ended_and_have_weights_are_offered(runs, settings):
    assert sorted(finished_runs(runs)) == ["a/one", "a/sweep/2_lora.r-4"]
    assert finished_runs(runs / "nowhere") == {}
    shelf = Shelf(settings("webui", f"run={runs}/a/one"))
    assert shelf.names == ["a/one", "a/sweep/2_lora.r-4"]
    assert Shelf(settings("webui", "model=tiny", f"runs_dir={runs}")).names[1:] == sorted(
        finished_runs(runs), reverse=True
    )
    with pytest.raises(UserError, match="there is no such run"):
        shelf.card("../outputs/a/one")


def test_adapters_over_one_base_share_it(runs, settings):
    shelf = Shelf(settings("webui", f"run={runs}/a/one", "max_new_tokens=12"))
    with shelf.lock:
        first = shelf.open("a/one")
        said = first.talk.ask("hello")
        base = first.talk.model.get_base_model()
        second = shelf.open("a/sweep/2_lora.r-4")
        assert second.talk.model.get_base_model() is base and not shelf.is_open("a/one")
        assert second.talk.model.peft_config["default"].r == 4
        chat = open_talk(plain(compose(f"run={runs}/a/sweep/2_lora.r-4", command="chat")))
        assert second.talk.ask("hello") == chat.ask("hello")
        again = shelf.open("a/one").talk
        again.messages.clear()
        assert again.ask("hello") == said
        shelf.close()


def test_in_four_bits(trained, settings):
    from bitsandbytes.nn import Linear4bit

    config = in_four_bits(settings("webui", f"run={trained()}", "max_new_tokens=12"))
    assert config["quant"]["bnb_4bit_quant_type"] == "nf4" and in_four_bits(config) == config
    shelf = Shelf(config)
    with shelf.lock:
        talk = shelf.open(shelf.first).talk
        assert any(isinstance(module, Linear4bit) for module in talk.model.modules())
        chat = open_talk(plain(compose(f"run={trained()}", "max_new_tokens=12", "quant=nf4", command="chat")))
        assert talk.ask("hello") == chat.ask("hello")


def test_a_bare_base_has_nothing_to_be_compared_with(settings):
    shelf = Shelf(settings("webui", "model=tiny", "runs_dir=."))
    card = shelf.card(shelf.first)
    assert (card.system, card.has_base, card.facts) == ("", False, "not trained by sft")
    with shelf.lock, pytest.raises(UserError, match="no base to compare with"), shelf.open(shelf.first).as_base():
        pass
