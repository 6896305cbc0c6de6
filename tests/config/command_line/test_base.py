"""A run's snapshot and a user's file as the base of a new composition."""

import pytest
from omegaconf import OmegaConf

from sft.api import compose
from sft.config.command_line.base import read_run
from sft.config.compose import plain
from sft.config.errors import UserError


@pytest.fixture
def snapshot(tmp_path):
    config = plain(compose("model=tiny", "lora.r=4", "trainer.max_steps=3", "dataset.max_length=77"))
    path = tmp_path / "run" / "config.resolved.yaml"
    path.parent.mkdir()
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    return path


def test_a_snapshot_composes_to_the_same_run(snapshot):
    assert plain(compose(file=snapshot)) == plain(read_run(str(snapshot.parent)))


def test_overrides_take_precedence_over_a_snapshot(snapshot):
    config = compose("lora.r=9", "quant=nf4", "lora.use_rslora=true", file=snapshot)
    assert (config.lora.r, config.lora.use_rslora, config.dataset.max_length) == (9, True, 77)
    assert config.quant.load_in_4bit is True


def test_a_group_chosen_over_a_snapshot_replaces_it(snapshot):
    config = compose("dataset=local", "dataset.path=x.json", "callbacks=none", file=snapshot)
    assert config.dataset.path == "x.json"
    assert config.dataset.get("sources") is None
    assert config.callbacks is None


def test_a_partial_file_is_merged_over_the_defaults(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("model: tiny\nlora: {r: 32}\ntrainer: {max_steps: 5, adam_beta2: 0.9}\n")
    config = compose("trainer.max_steps=7", file=path)
    assert (config.model.architecture, config.lora.r, config.lora.lora_alpha) == ("llama", 32, 32)
    assert (config.trainer.max_steps, config.trainer.adam_beta2) == (7, 0.9)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lora: {rnak: 3}", "lora.rnak"),
        ("a: [1", "is not YAML"),
        ("- 1", "has no mapping"),
        ("sede: 1", "did you mean seed"),
    ],
)
def test_an_invalid_file_is_reported_by_name(tmp_path, text, says):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        compose(file=path)


def test_a_directory_that_is_not_a_run_is_reported(tmp_path):
    with pytest.raises(UserError, match="is not the directory of a run"):
        read_run(str(tmp_path))
    with pytest.raises(UserError, match="no such directory"):
        read_run(str(tmp_path / "nothing"))


def test_a_users_own_conf_takes_precedence_over_the_packaged_one(tmp_path, monkeypatch):
    (tmp_path / "conf" / "lora").mkdir(parents=True)
    (tmp_path / "conf" / "lora" / "mine.yaml").write_text("_target_: peft.LoraConfig\nr: 3\n")
    (tmp_path / "conf" / "lora" / "r16.yaml").write_text("_target_: peft.LoraConfig\nr: 17\n")
    monkeypatch.chdir(tmp_path)
    assert compose("lora=mine").lora.r == 3
    assert compose().lora.r == 17


@pytest.mark.parametrize("command", ["evaluate", "chat", "webui", "merge", "estimate", "reproduce"])
def test_a_runs_config_is_used_and_the_command_line_takes_precedence(tmp_path, command):
    run = tmp_path / "run"
    run.mkdir()
    OmegaConf.save(OmegaConf.create(plain(compose("experiment=smoke", "lora.r=3"))), run / "config.resolved.yaml")
    config = compose(f"run={run}", "seed=7", command=command)
    assert config.lora.r == 3
    assert config.model._target_ == "sft.model.spec.TinyModel"
    assert config.seed == 7


def test_the_judge_of_a_run_is_only_used_if_set_on_the_command_line(snapshot):
    config = OmegaConf.load(snapshot)
    config.judge = {"_target_": "sft.evaluation.judges.spec.OpenAIJudge", "api_key_env": "HF_TOKEN"}
    snapshot.write_text(OmegaConf.to_yaml(config))
    assert plain(compose(file=snapshot, command="evaluate")).get("judge") is None


def test_a_judge_does_not_get_another_services_key():
    with pytest.raises(UserError, match=r"judge\.api_key_env: HF_TOKEN belongs to another service"):
        compose("judge=openai", "judge.api_key_env=HF_TOKEN", command="evaluate")
