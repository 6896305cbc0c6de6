"""What the doctor reports, and what it keeps secret."""

import json
import sys

import pytest

from sft import doctor

SECRET = "hf_" + "verysecretvalue" * 2


@pytest.mark.parametrize("overrides", [[], ["json=true"]], ids=["table", "json"])
def test_keys_are_named_and_never_shown(overrides, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("MY_OWN_API_KEY", "anothersecretvalue")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(sys, "argv", ["doctor", *overrides])
    doctor.main()
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err and "anothersecretvalue" not in shown.out + shown.err
    if overrides:
        keys = json.loads(shown.out)["keys"]
        assert (keys["HF_TOKEN"], keys["MY_OWN_API_KEY"], keys["WANDB_API_KEY"]) == ("set", "set", "not set")
    else:
        assert "MY_OWN_API_KEY" in shown.out and "torch" in shown.out


def test_missing_packages_are_listed_with_purpose_and_install_command(monkeypatch):
    from sft.model import doctor as examined

    monkeypatch.setattr(examined, "_version", lambda name: None if name == "gradio" else "1.0")
    extras = examined.inspect_machine().sections["extras"]
    assert extras["gradio"] == "missing for sft.webui: pip install 'sft[webui]'"
    assert extras["optuna"] == "1.0, for hydra/sweeper=optuna"
