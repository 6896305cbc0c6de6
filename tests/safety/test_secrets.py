"""No secret gets into what is written, and ordinary words stay as they are."""

from __future__ import annotations

import html
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.run.directory import RunDirectory
from sft.safety.secrets import HIDDEN, is_secret_key, is_secret_variable, redact, redact_command, redact_tree

ENVIRONMENT = {
    "HF_TOKEN": "hf_short12345",
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "deadbeef",
    "MY_DB_PASSWORD": 'p"ss\\wörd',
    "AWS_SECRET_ACCESS_KEY": "aws/secret+value",
    "PWD": "/home/someone/project",
    "SHORT_TOKEN": "1",
}


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("HF_TOKEN", True),
        ("WANDB_API_KEY", True),
        ("OPENAI_API_KEY", True),
        ("OPENAI_KEY", True),
        ("DB_PWD", True),
        ("GITHUB_PAT", True),
        ("GOOGLE_APPLICATION_CREDENTIALS", True),
        ("OLDPWD", False),
        ("KEYBOARD", False),
        ("CLIENT_SECRET", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("PGPASSWORD", True),
        ("PASSWORD_FILE", True),
        ("PWD", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("HOME", False),
        ("MODEL_ID", False),
    ],
)
def test_which_variables_are_secret(name: str, secret: bool) -> None:
    assert is_secret_variable(name) is secret


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        ("hub_token", True),
        ("trainer.hub_token", True),
        ("token", True),
        ("api_key", True),
        ("evaluation.judge.api_key", True),
        ("password", True),
        ("eos_token", False),
        ("model.tokenizer.special_tokens.pad_token", False),
        ("max_new_tokens", False),
        ("stop_tokens", False),
        ("tokenizer", False),
    ],
)
def test_which_config_keys_are_secret(key: str, secret: bool) -> None:
    assert is_secret_key(key) is secret


def test_values_of_secret_variables_are_hidden() -> None:
    text = f"sent {ENVIRONMENT['HF_TOKEN']} and {ENVIRONMENT['WANDB_API_KEY']} from {ENVIRONMENT['PWD']}, 1 time"
    assert redact(text, ENVIRONMENT) == f"sent {HIDDEN} and {HIDDEN} from /home/someone/project, 1 time"


def test_wandb_disabled_is_a_switch_and_not_a_secret() -> None:
    assert redact("callbacks are disabled", {"WANDB_API_KEY": "disabled"}) == "callbacks are disabled"


def test_credentials_outside_of_variables_are_hidden_by_their_form() -> None:
    assert redact("hf_" + "a" * 34, {}) == HIDDEN
    assert redact("https://me:pass@host/path", {}) == f"https://{HIDDEN}@host/path"
    assert redact("time 12:30 at a:b, hf_model", {}) == "time 12:30 at a:b, hf_model"


def test_nested_configs_are_redacted_in_keys_and_values() -> None:
    tree = {"trainer": {"hub_token": "abc", "note": ["x", ENVIRONMENT["MY_DB_PASSWORD"]]}, "eos_token": "</s>", "n": 3}
    assert redact_tree(tree, ENVIRONMENT) == {
        "trainer": {"hub_token": HIDDEN, "note": ["x", HIDDEN]},
        "eos_token": "</s>",
        "n": 3,
    }


def test_a_command_line_is_recorded_without_its_secrets() -> None:
    command = ["sft", "++trainer.hub_token=abc", "--api-key", "xyz", "lora.r=8", f"name={ENVIRONMENT['HF_TOKEN']}"]
    assert redact_command(command, ENVIRONMENT) == [
        "sft",
        f"++trainer.hub_token={HIDDEN}",
        "--api-key",
        HIDDEN,
        "lora.r=8",
        f"name={HIDDEN}",
    ]


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_without_secrets_nothing_changes(value: object) -> None:
    clean = redact_tree(value, {})
    if "hf_" not in json.dumps(value) and "://" not in json.dumps(value) and not any_secret_key(value):
        assert clean == value


def any_secret_key(value: object) -> bool:
    if isinstance(value, dict):
        return any(is_secret_key(k) or any_secret_key(v) for k, v in value.items())
    return isinstance(value, list) and any(any_secret_key(item) for item in value)


@given(
    before=st.text(max_size=20),
    secret=st.text(st.characters(blacklist_categories=("Cs",)), min_size=8, max_size=40).filter(
        lambda s: len(s.strip()) >= 8 and s.strip().lower() not in {"disabled", "anonymous", "undefined"}
    ),
)
def test_no_secret_of_any_spelling_survives_in_a_json_file(tmp_path_factory, before: str, secret: str) -> None:
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as context:
        context.setenv("SOME_API_KEY", secret.replace("\0", "0"))
        secret = secret.replace("\0", "0").strip()
        run = RunDirectory(tmp_path_factory.mktemp("run"))
        run.write_json("x.json", {"a": [before + secret], "b": {"c": secret}})
        found = json.loads((run.path / "x.json").read_text())
        assert secret not in found["a"][0].replace(HIDDEN, "")
        assert found["b"]["c"] == HIDDEN


@pytest.mark.parametrize("quote", [str, repr, json.dumps, html.escape])
def test_a_multiline_secret_is_hidden_however_it_is_quoted(quote):
    secret = 'first "line" here\nsecond <line> here'
    hidden = redact(f"it said {quote(secret)}", {"SIGN_SECRET": secret})
    assert "first" not in hidden and "second" not in hidden and hidden.startswith("it said ")
