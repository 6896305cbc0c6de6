"""Keys from the environment and .env are in no file or output of a run, also if it fails because of them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# of the environment; of .env; a password that JSON, YAML and a shell would each write in their own way
KEYS = {
    "HF_TOKEN": "hf_" + "Qx7Zk2" * 6,
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "deadbeef",
    "MY_DB_PASSWORD": 'p"ss\\wörd $HOME',
}
IN_FILE = {"OPENAI_API_KEY": "sk-" + "Ab9" * 12}
SMALL = [
    *("model=tiny", "lora=r8", "dataset=tickets", "dataset.num_proc=0", "model.dtype=float32", "callbacks=quiet"),
    *("dataset.sources.tickets.generator.rows=24", "dataset.eval_sources.known.generator.rows=4"),
    *("dataset.eval_sources.unseen.generator.rows=4", "trainer.per_device_train_batch_size=4", "trainer.max_steps=2"),
    *("trainer.save_strategy=steps", "trainer.save_steps=1", "tracker=wandb", "tracker.mode=offline"),
]
# A callback of the user's that says what it knows, into every place there is.
TELLTALE = """
import logging, os, sys, warnings
from sft.training.callbacks.base import RunCallback

class Telltale(RunCallback):
    def __init__(self, fail: bool = False) -> None:
        self.fail = fail

    def on_step_end(self, args, state, control, **kwargs):
        for name in ("HF_TOKEN", "WANDB_API_KEY", "MY_DB_PASSWORD", "OPENAI_API_KEY"):
            key = os.environ[name]
            logging.getLogger("sft").warning("the key is %s", key)
            logging.getLogger("transformers").error("401 for https://me:%s@host", key)
            warnings.warn(f"{name}={key}")
            self.run.append_jsonl("told.jsonl", {"text": key, "api_key": key, "of": {key: [key]}})
            self.run.write_text("told.txt", key)
        if self.fail:
            secret = os.environ["MY_DB_PASSWORD"]
            raise RuntimeError(f"no answer for {secret} with {os.environ['HF_TOKEN']} and {os.environ['OPENAI_API_KEY']}")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, command):
    """Overrides -> the finished process of a run in a directory with a .env, and that directory."""
    place = tmp_path_factory.mktemp("secrets")
    (place / "telltale.py").write_text(TELLTALE)
    (place / ".env").write_text("".join(f'{name}="{value}"\n' for name, value in IN_FILE.items()))
    environment = {**KEYS, "PYTHONPATH": f"{ROOT}{os.pathsep}{place}"}

    def start(name: str, *overrides: str) -> tuple[subprocess.CompletedProcess[str], Path]:
        directory = place / name
        return command("train", *SMALL, f"hydra.run.dir={directory}", *overrides, cwd=place, env=environment), directory

    return start


def leaks(done: subprocess.CompletedProcess[str], directory: Path) -> list[str]:
    """Where a key is found: a run's files and outputs, in any of the ways that JSON and YAML write it."""
    places = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    places |= {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    found = []
    for key in (KEYS | IN_FILE).values():
        ways = {
            key,
            key.replace("\\", "\\\\").replace('"', '\\"'),
            key.encode("unicode_escape").decode(),
            repr(key)[1:-1],
        }
        found += [place for place, content in places.items() if any(way.encode() in content for way in ways)]
    return found


def test_a_run_writes_no_secret(run):
    done, directory = run(
        "whole",
        "callbacks=[quiet]",
        "+callbacks.telltale={_target_: telltale.Telltale}",
        "allow_targets=[telltale.Telltale]",
    )
    assert done.returncode == 0, done.stderr
    assert leaks(done, directory) == []
    names = {path.name for path in directory.rglob("*")}
    assert {"train.log", "told.jsonl", "told.txt", "optimizer.pt", "config.resolved.yaml", "README.md"} <= names
    assert list(directory.rglob("run-*.wandb"))
    assert not {path.name for path in directory.rglob("*.bin")}
    assert (directory / "train.log").read_text().count("the key is ***") == 8
    assert (directory / "told.txt").read_text() == "***"


@pytest.mark.slow
def test_a_failing_run_writes_no_secret(run):
    done, directory = run(
        *("fails", "callbacks=[quiet]", "+callbacks.telltale={_target_: telltale.Telltale, fail: true}"),
        "allow_targets=[telltale.Telltale]",
    )
    assert done.returncode == 1
    assert "no answer for *** with *** and ***" in done.stderr
    assert leaks(done, directory) == []
    assert "no answer for *** with *** and ***" in (directory / "train.log").read_text()


def test_a_secret_on_the_command_line_is_refused_before_anything_is_written(run):
    done, directory = run("typed", f"tracker.project={KEYS['HF_TOKEN']}", "+tracker.api_key=abcdef")
    assert done.returncode == 2
    assert "tracker.project: holds the value of the environment variable HF_TOKEN" in done.stderr
    assert "tracker.api_key: is a secret by its name" in done.stderr
    assert KEYS["HF_TOKEN"] not in done.stderr + done.stdout
    assert not directory.exists()
