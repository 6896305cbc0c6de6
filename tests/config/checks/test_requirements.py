"""Missing requirements of a config are reported before anything is loaded."""

import importlib.util

import pytest

from sft.config.checks import requirements
from sft.config.checks.requirements import missing


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without extras, keys and a home."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "WANDB_BASE_URL", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(requirements, "_installed", lambda module: module == "wandb")
    return tmp_path


@pytest.fixture
def lacking(compose):
    """Overrides -> {key: message} of what is not there."""

    def found(*overrides: str, command: str = "train") -> dict[str, str]:
        composed = compose(*overrides)
        return {str(e.where): f"{e.what} -> {e.remedy}" for e in missing(composed.plain, composed.hydra, command)}

    return found


@pytest.mark.parametrize(
    ("override", "where", "install"),
    [
        ("tracker=mlflow", "tracker", "pip install 'sft[trackers]'"),
        ("tracker=tensorboard", "tracker", "pip install 'sft[trackers]'"),
        ("tracker=trackio", "tracker", "pip install 'sft[trackers]'"),
        ("trainer=trl", "trainer", "pip install 'sft[trl]'"),
        ("trainer=deepspeed_zero2", "trainer.deepspeed", "pip install 'sft[deepspeed]'"),
        ("trainer.use_liger_kernel=true", "trainer.use_liger_kernel", "pip install 'sft[liger]'"),
        ("lora=loftq", "lora.init_lora_weights", "pip install 'sft[loftq]'"),
        ("evaluation=lm_eval", "evaluation", "pip install 'sft[eval]'"),
        ("hydra/sweeper=optuna", "hydra/sweeper", "pip install 'sft[optuna]'"),
        ("hydra/launcher=joblib", "hydra/launcher", "pip install 'sft[joblib]'"),
        ("hydra/launcher=submitit_slurm", "hydra/launcher", "pip install 'sft[submitit]'"),
        ("trainer.optim=galore_adamw", "trainer.optim", "pip install galore-torch"),
    ],
)
def test_a_missing_extra_is_named_with_its_command(bare, lacking, override, where, install):
    assert install in lacking(override)[where]


def test_a_missing_judge_is_named_where_answers_are_judged(bare):
    config = {"judge": {"_target_": "sft.evaluation.judges.spec.GeminiJudge", "scorer": "deepeval"}}
    (error,) = missing(config, command="evaluate")
    assert (error.where, "pip install 'sft[judge]'" in str(error)) == ("judge.scorer", True)


def test_nothing_is_missing_for_the_defaults(bare, lacking):
    assert lacking() == {}


@pytest.mark.parametrize("command", ["chat", "merge", "preview", "estimate", "leaderboard"])
def test_other_commands_do_not_need_the_extras_of_training(bare, lacking, command):
    assert lacking("tracker=wandb", "trainer=trl", command=command) == {}


def test_wandb_needs_a_key_online(bare, lacking, monkeypatch):
    assert "WANDB_API_KEY" in lacking("tracker=wandb", "tracker.mode=online")["tracker"]
    assert lacking("tracker=wandb", "tracker.mode=offline") == {}
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert lacking("tracker=wandb", "tracker.mode=online") == {}


@pytest.mark.parametrize("host", ["api.wandb.ai", "wandb.example.org"])
def test_the_key_stored_by_wandb_login_is_accepted(bare, lacking, monkeypatch, host):
    monkeypatch.setenv("WANDB_BASE_URL", f"https://{host}")
    assert "tracker" in lacking("tracker=wandb", "tracker.mode=online")
    (bare / ".netrc").write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
    (bare / ".netrc").chmod(0o600)
    assert lacking("tracker=wandb", "tracker.mode=online") == {}


def test_a_module_is_found_without_importing_it():
    assert requirements._installed("yaml")
    assert not requirements._installed("no_such_module_anywhere")
    assert importlib.util.find_spec("no_such_module_anywhere") is None


@pytest.mark.parametrize("command", ["train", "preview", "prepare", "estimate"])
def test_a_missing_file_is_reported_before_anything_is_read(bare, lacking, command):
    (bare / "rows.jsonl").write_text("{}\n")
    assert lacking("dataset=local", "dataset.path=rows.jsonl", command=command) == {}
    assert lacking("dataset=local", "dataset.path=row.jsonl", command=command) == {
        "dataset.path": "row.jsonl does not exist -> did you mean rows.jsonl?"
    }


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["dataset=local", "dataset.path=[rows.jsonl,none/row.jsonl]"], "dataset.path"),
        (["dataset=local", "dataset.path=rows.jsonl", "+dataset.sources.b={path: none/x}"], "dataset.sources.b.path"),
        (["dataset=local", "dataset.path=rows.jsonl", "+dataset.eval_sources.b=none/x"], "dataset.eval_sources.b"),
        (["template=file", "template.path=none/x.jinja"], "template.path"),
        (["model=hub", "model.name=./none/model"], "model.name"),
        (["model=hub", "model.name=ORG/model", "model.adapter=none/adapter"], "model.adapter"),
    ],
)
def test_every_key_that_names_a_file_is_checked(bare, lacking, overrides, where):
    (bare / "rows.jsonl").write_text("{}\n")
    assert list(lacking(*overrides)) == [where]


def test_an_unknown_users_home_is_a_missing_path(bare, lacking):
    assert lacking("dataset=local", "dataset.path='~no_such_user/rows.jsonl'") == {
        "dataset.path": "~no_such_user/rows.jsonl does not exist -> ~no_such_user is not a directory"
    }


def test_two_paths_given_as_one_get_a_remedy(bare, lacking):
    assert lacking("dataset=local", "dataset.path='a.json,b.json'") == {
        "dataset.path": "a.json,b.json does not exist -> dataset.path=[a.json,b.json] reads all of them; "
        "with -m, dataset.path=choice(a.json,b.json) makes one run with each"
    }


def test_globs_and_addresses_are_left_to_the_reader(bare, lacking):
    assert lacking("dataset=local", "dataset.path=data/*.jsonl") == {}
    assert lacking("dataset=local", "dataset.path=s3://bucket/rows.jsonl") == {}
    assert lacking("model=hub", "model.name=ORG/model") == {}
    assert lacking("dataset=local", "dataset.path=moved.jsonl", "resume=RUN") == {}
