"""run.json, training_info.json and metrics.json."""

from __future__ import annotations

import importlib.metadata
import json
import math
import mmap
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from sft.config.errors import UserError
from sft.run import environment, memory
from sft.run.directory import RunDirectory
from sft.run.info import TrainingInfo
from sft.run.metrics import Metrics, last_values, perplexity
from sft.run.record import RunRecord, read_record


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def test_run_json_has_everything_to_reproduce_the_run(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "very-secret-value")
    record = RunRecord(run)
    command = ["-m", "sft.train", "name=very-secret-value", "trainer.hub_token=x", "lora.r=8"]
    record.start(seed=7, command=command, data={"train": "abc"}, name="demo")
    found = read_record(run)
    assert found["status"] == "running"
    assert found["seed"] == 7
    assert found["world_size"] == 1
    assert found["data"] == {"train": "abc"}
    assert found["name"] == "demo"
    assert found["command"] == "-m sft.train 'name=***' 'trainer.hub_token=***' lora.r=8"
    packages = ("torch", "transformers", "datasets", "peft", "bitsandbytes", "accelerate", "hydra-core")
    assert {name: found["versions"][name] for name in packages} == {n: importlib.metadata.version(n) for n in packages}
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["sft"]
    assert found["hardware"]["cpu"]
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["memory_bytes"] > 2**20
    assert isinstance(found["hardware"]["gpus"], list)
    assert datetime.fromisoformat(found["started"]).tzinfo is not None
    assert found["ended"] is None
    assert "very-secret-value" not in run.run_json.read_text()


def test_a_resumed_run_keeps_its_first_start_and_counts_its_sessions(run: RunDirectory) -> None:
    first = RunRecord(run)
    first.start(command=["a"])
    started = read_record(run)["started"]
    first.finish("interrupted")
    second = RunRecord(run)
    second.start(command=["b"], resumed_from="checkpoint-10")
    second.update(data={"train": "abc"})
    assert read_record(run)["ended"] is None
    second.finish("failed", error=ValueError("too large"))
    found = read_record(run)
    assert found["started"] == started
    assert found["status"] == "failed"
    assert found["error"] == "ValueError: too large"
    assert found["data"] == {"train": "abc"}
    assert [(s["command"], s["status"], s["resumed_from"]) for s in found["sessions"]] == [
        ("a", "interrupted", None),
        ("b", "failed", "checkpoint-10"),
    ]
    third = RunRecord(run)
    third.start(command=["c"])
    assert read_record(run)["error"] is None


def test_an_unknown_status_is_a_programming_error(run: RunDirectory) -> None:
    with pytest.raises(ValueError, match="status is one of"):
        RunRecord(run).finish("done")  # type: ignore[arg-type]


def test_world_size_is_torchruns(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    RunRecord(run).start(command=[])
    assert read_record(run)["world_size"] == 2


def test_git_state_names_commit_and_changes(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    assert environment.git_state(tmp_path) is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "a")
    found = environment.git_state(tmp_path)
    assert found is not None
    assert len(found["commit"]) == 40
    assert found["dirty"] is False
    (tmp_path / "b").write_text("not tracked")
    assert environment.git_state(tmp_path) == found
    (tmp_path / "a").write_text("2")
    assert environment.git_state(tmp_path) == {**found, "dirty": True}


def test_recording_the_environment_imports_nothing_heavy() -> None:
    code = (
        "import sys; import sft.run.record, sft.run.info, sft.run.log, sft.run.lock, sft.run.checkpoint, sft.hub.card,"
        " sft.drawing.curves, sft.run.trackers.wandb, sft.run.trackers.mlflow, sft.run.trackers.trackio,"
        " sft.run.trackers.tensorboard, sft.training.callbacks; from sft.run import environment; environment.versions();"
        " print([m for m in ('torch', 'transformers', 'datasets', 'peft', 'matplotlib', 'wandb') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"


def test_training_info_is_read_back(run: RunDirectory) -> None:
    info = TrainingInfo(model_name="smollm2_offline", model_path="/models/x", stop_tokens=["<|im_end|>"], lora={"r": 8})
    info.write(run)
    assert TrainingInfo.read(run) == info
    run.write_json(run.training_info, {**json.loads(run.training_info.read_text()), "newer_key": 1})
    assert TrainingInfo.read(run).extra == {"newer_key": 1}


def test_a_directory_without_training_info_is_not_a_run(run: RunDirectory) -> None:
    with pytest.raises(UserError, match=r"no training_info\.json"):
        TrainingInfo.read(run)


def test_metrics_json_has_the_documented_keys(run: RunDirectory) -> None:
    Metrics(status="finished", steps=12, eval_loss=1.0, extra={"eval_names_loss": 0.5, "steps": 99}).write(run)
    found = json.loads(run.metrics_json.read_text())
    assert set(found) == {
        "status",
        "steps",
        "epochs",
        "train_loss",
        "eval_loss",
        "eval_perplexity",
        "eval_token_accuracy",
        "total_tokens",
        "trained_tokens",
        "tokens_per_second",
        "peak_memory_bytes",
        "train_seconds",
        "total_seconds",
        "eval_names_loss",
    }
    assert found["steps"] == 12
    assert found["eval_perplexity"] == math.e
    read = Metrics.read(run)
    assert read is not None
    assert read.extra == {"eval_names_loss": 0.5}
    assert read.as_dict() == found
    assert Metrics.read(RunDirectory(run.path / "other")) is None


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.0, 1.0), (None, None), (float("nan"), None), (float("inf"), None), (5000.0, None)]
)
def test_perplexity_is_finite_or_missing(loss: float | None, expected: float | None) -> None:
    assert perplexity(loss) == expected


def test_the_last_logged_values_are_used() -> None:
    history = [{"step": 1, "loss": 2.0, "eval_loss": 3.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": None}]
    assert last_values(history) == {"step": 2, "loss": 1.0, "eval_loss": 3.0}


def test_the_peak_is_measured_anew_after_a_reset() -> None:
    memory.reset_peak()
    before = memory.peak_bytes()
    block = mmap.mmap(-1, 64 << 20)  # pages that the heap cannot have already
    block.write(b"x" * (64 << 20))
    peak = memory.peak_bytes()
    assert peak - before >= 60 << 20
    block.close()
    memory.reset_peak()
    assert memory.peak_bytes() < peak
    assert memory.total_bytes() > memory.process_bytes() > 0
    assert memory.device_bytes() == 0
