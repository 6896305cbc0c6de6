"""Trackers: real wandb in offline mode, the others with fakes that record the calls."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerState

from sft.config.errors import UserError
from sft.run.directory import RunDirectory
from sft.run.trackers.base import Guarded, Tracker, library, panels, tracking
from sft.run.trackers.mlflow import MlflowTracker
from sft.run.trackers.tensorboard import TensorboardTracker
from sft.run.trackers.trackio import TrackioTracker
from sft.run.trackers.wandb import WandbTracker
from sft.training.callbacks.tracker import TrackerCallback

KEY = "0123456789abcdef" * 2 + "deadbeef"
CONFIG = {
    "lora": {"r": 8},
    "trainer": {"learning_rate": 2e-4, "hub_token": "abcdef"},
    "note": f"key {KEY}",
    "x": float("nan"),
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def leaks(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


# -- wandb -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WANDB_DIR", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", "hf_" + KEY)
    yield
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        wandb.teardown()


def events(directory: Path) -> list[Any]:
    """What an offline run has written. wandb's service closes the file a moment after `finish` has returned."""
    for _ in range(500):
        found = scan(directory)
        if any(record.HasField("exit") for record in found):
            break
        time.sleep(0.02)
    return found


def scan(directory: Path) -> list[Any]:
    """The records of wandb's file, which is framed like a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    content, at, block = path.read_bytes(), 7, 32768
    found, pending = [], b""
    while at + 7 <= len(content):
        if block - at % block < 7:  # no frame begins in the last bytes of a block
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        pending += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(pending)
            found.append(record)
            pending = b""
    return found


def test_each_job_of_a_process_is_a_separate_offline_run(
    tmp_path: Path, wandb_offline: None, capfd: pytest.CaptureFixture
) -> None:
    jobs = [RunDirectory(tmp_path / name) for name in ("a", "b")]
    for number, job in enumerate(jobs):
        with tracking(WandbTracker(tags=["t"], mode="offline"), job, CONFIG, job.path.name, "sweep") as tracker:
            for step in (1, 2, 3):
                tracker.log({"loss": 1.0 / step + number, "note": "no number"}, step)
            tracker.log({"eval_loss": 0.5}, 3)
        import wandb

        assert wandb.run is None
    written = [events(job.path) for job in jobs]
    for job, records in zip(jobs, written, strict=True):
        (start,) = [record.run for record in records if record.HasField("run")]
        assert (start.display_name, start.run_group, start.project, list(start.tags)) == (
            job.path.name,
            "sweep",
            "sft",
            ["t"],
        )
        config = {item.key: json.loads(item.value_json) for item in start.config.update}
        assert config["lora"] == {"r": 8}
        assert config["trainer"]["hub_token"] == "***"
        history = [record.history for record in records if record.HasField("history")]
        rows = [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in row.item} for row in history]
        assert [row["_step"] for row in rows] == [1, 2, 3]
        assert rows[-1]["eval/loss"] == 0.5
        assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    losses = [
        json.loads(i.value_json)
        for r in written[1]
        if r.HasField("history")
        for i in r.history.item
        if "train/loss" in (i.key, *i.nested_key)
    ]
    assert losses == [2.0, 1.5, 1.0 / 3 + 1]
    assert len({job.read_json(job.tracker_json)["wandb"] for job in jobs}) == 2
    assert leaks(tmp_path) == []
    out, _ = capfd.readouterr()
    assert out == ""


def test_a_failed_job_is_finished_as_failed_and_resumed_under_its_id(
    run: RunDirectory, wandb_offline: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError), tracking(WandbTracker(mode="offline"), run, {}, "run") as tracker:
        tracker.log({"loss": 1.0}, 1)
        raise RuntimeError
    (record,) = [record.exit for record in events(run.path) if record.HasField("exit")]
    assert record.exit_code == 1
    identity = run.read_json(run.tracker_json)["wandb"]
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("WANDB_DIR", str(elsewhere))
    with tracking(WandbTracker(mode="offline"), run, {}, "run"):
        pass
    assert [path.name for path in elsewhere.rglob("run-*.wandb")] == [f"run-{identity}.wandb"]


def test_artifacts_are_stored_on_request(run: RunDirectory, wandb_offline: None) -> None:
    run.write_text("adapter/adapter_model.safetensors", "weights")
    run.write_text("merged/model.safetensors", "weights")
    with tracking(WandbTracker(mode="offline", log_adapter=True), run, {}, "run") as tracker:
        tracker.artifact(run.adapter, "demo adapter/1", "adapter")
        tracker.artifact(run.merged, "demo-merged", "merged")
        tracker.artifact(run.model, "absent", "model")
    names = [r.request.log_artifact.artifact.name for r in events(run.path) if r.request.HasField("log_artifact")]
    names += [record.artifact.name for record in events(run.path) if record.HasField("artifact")]
    assert names == ["demo-adapter-1"]


def test_training_stores_the_adapter_and_the_merged_model(run_in: Any, run: RunDirectory, wandb_offline: None) -> None:
    """The merged model is written last, when the tracker was once closed already."""
    tracker = ("tracker=wandb", "tracker.mode=offline", "tracker.log_adapter=true", "tracker.log_merged=true")
    run_in(run.path, *tracker, "save_merged_model=true", "trainer.max_steps=1")
    found = [record.artifact for record in events(run.path) if record.HasField("artifact")]
    found += [r.request.log_artifact.artifact for r in events(run.path) if r.request.HasField("log_artifact")]
    kept = {artifact.name: {Path(entry.path).name for entry in artifact.manifest.contents} for artifact in found}
    assert sorted(kept) == ["sft-adapter", "sft-merged"]
    assert "adapter_model.safetensors" in kept["sft-adapter"]
    assert "model.safetensors" in kept["sft-merged"]


@pytest.mark.parametrize("how", ["mode", "key"])
def test_a_disabled_tracker_does_nothing(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it would fail
    monkeypatch.setenv("WANDB_API_KEY", "disabled" if how == "key" else KEY)
    with tracking(WandbTracker(mode="disabled" if how == "mode" else "online"), run, CONFIG, "run") as tracker:
        tracker.log({"loss": 1.0}, 1)
        tracker.artifact(run.path, "x", "adapter")
    assert not run.path.exists()


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UserError, match="'ofline' is not a mode"):
        WandbTracker(mode="ofline")  # type: ignore[arg-type]


def test_online_without_a_key_says_what_to_do(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    import wandb

    def refuse(**_: Any) -> None:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match="No API key") as caught:
        WandbTracker(mode="online").start(run, {}, "run")
    assert "tracker.mode=offline" in str(caught.value)


# -- the others --------------------------------------------------------------------------------------------------------


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)


def test_tensorboard_writes_scalars_and_hides_repeated_steps(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    class SummaryWriter:
        def __init__(self, log_dir: str, flush_secs: int, purge_step: int | None) -> None:
            Path(log_dir).mkdir(parents=True, exist_ok=True)
            Path(log_dir, f"events.{len(calls)}").touch()
            calls.append(("open", log_dir, purge_step))

        def add_text(self, *arguments: Any) -> None:
            calls.append(("text", *arguments))

        def add_scalar(self, *arguments: Any) -> None:
            calls.append(("scalar", *arguments))

        def close(self) -> None:
            calls.append(("close",))

    stand_in(monkeypatch, "torch.utils.tensorboard", SummaryWriter=SummaryWriter)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with tracking(TensorboardTracker(), run, CONFIG, "run") as tracker:
        tracker.log({"loss": 1.0, "eval_loss": 2, "bad": float("nan"), "text": "x"}, 1)
        tracker.artifact(run.path, "x", "adapter")
    with tracking(TensorboardTracker(), run, CONFIG, "run") as tracker:
        tracker.log({"loss": 0.5}, 5)
    with tracking(TensorboardTracker(), run, CONFIG, "run"):
        pass
    where = str(run.path / "tensorboard")
    kinds = [call if call[0] != "text" else (*call[:2], call[3]) for call in calls]
    assert kinds == [
        ("open", where, None),
        ("text", "config", 0),
        ("scalar", "train/loss", 1.0, 1),
        ("scalar", "eval/loss", 2, 1),
        ("close",),
        ("open", where, 5),
        ("scalar", "train/loss", 0.5, 5),
        ("close",),
    ]
    assert KEY not in str(calls)
    assert '"hub_token": "***"' in str(calls)


def test_mlflow_has_one_ended_run_per_directory(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def record(name: str, answer: Any = None) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            calls.append((name, *arguments, keywords) if keywords else (name, *arguments))
            return answer

        return call

    active = SimpleNamespace(info=SimpleNamespace(run_id="id1"))
    names = (
        "set_tracking_uri",
        "set_experiment",
        "log_params",
        "log_metrics",
        "log_artifact",
        "log_artifacts",
        "end_run",
    )
    members = {name: record(name) for name in names}
    stand_in(
        monkeypatch,
        "mlflow",
        **members,
        active_run=lambda: None,
        start_run=record("start_run", active),
        get_tracking_uri=lambda: "here",
    )
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run.write_text("adapter/a", "x")
    config = {**CONFIG, "long": "x" * 2000, "many": {f"k{i}": i for i in range(150)}}
    with tracking(MlflowTracker(tracking_uri="there", log_adapter=True), run, config, "name", "group") as tracker:
        tracker.log({"loss": 1.0, "eval_a(b)_loss": 2.0}, 4)
        tracker.artifact(run.adapter, "n", "adapter")
        tracker.artifact(run.adapter, "n", "merged")
    with pytest.raises(RuntimeError), tracking(MlflowTracker(), run, config, "name"):
        raise RuntimeError
    assert calls[:3] == [
        ("set_tracking_uri", "there"),
        ("set_experiment", "sft"),
        ("start_run", {"run_id": None, "run_name": "name", "tags": {"group": "group"}}),
    ]
    parameters = [call[1] for call in calls if call[0] == "log_params"]
    assert [len(part) for part in parameters] == [100, 56]
    together = {**parameters[0], **parameters[1]}
    assert together["lora.r"] == "8"
    assert together["trainer.hub_token"] == "***"
    assert len(together["long"]) == 500
    assert calls[5:8] == [
        ("log_metrics", {"train/loss": 1.0, "eval/a_b__loss": 2.0}, {"step": 4}),
        ("log_artifacts", str(run.adapter), {"artifact_path": "adapter"}),
        ("end_run", {"status": "FINISHED"}),
    ]
    assert calls[9] == ("start_run", {"run_id": "id1", "run_name": None, "tags": None})
    assert calls[-1] == ("end_run", {"status": "FAILED"})
    assert KEY not in str(calls)


def test_trackio_prints_nothing_on_stdout(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    calls: list[Any] = []

    class Run:
        name = "name"

        def log(self, metrics: dict[str, float], step: int) -> None:
            calls.append((metrics, step))

        def log_artifact(self, path: str, name: str, type: str) -> None:
            calls.append((path, name, type))

        def finish(self) -> None:
            print("* Run finished.")
            calls.append("finish")

    def init(**keywords: Any) -> Run:
        print("* Trackio project initialized")
        calls.append(keywords)
        return Run()

    stand_in(monkeypatch, "trackio", init=init)
    run.write_text("merged/a", "x")
    with tracking(TrackioTracker(log_merged=True), run, CONFIG, "name", "sweep") as tracker:
        tracker.log({"loss": 1.0}, 1)
        tracker.artifact(run.merged, "n", "merged")
    with tracking(TrackioTracker(), run, CONFIG, "other"):
        pass
    assert (calls[0]["name"], calls[0]["group"], calls[0]["resume"], calls[0]["config"]["x"]) == (
        "name",
        "sweep",
        "never",
        None,
    )
    assert calls[1:4] == [({"train/loss": 1.0}, 1), (str(run.merged), "n", "model"), "finish"]
    assert (calls[4]["name"], calls[4]["resume"]) == ("name", "allow")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("* Run finished.") == 2


@pytest.mark.parametrize(
    ("tracker", "module", "package"),
    [
        (WandbTracker(mode="offline"), "wandb", "wandb"),
        (TensorboardTracker(), "torch.utils.tensorboard", "tensorboard"),
        (MlflowTracker(), "mlflow", "mlflow"),
        (TrackioTracker(), "trackio", "trackio"),
    ],
)
def test_a_missing_library_is_named_with_its_command(
    tracker: Tracker, module: str, package: str, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"{package} is not installed") as caught:
        tracker.start(run, {}, "run")
    assert f"pip install {package}" in str(caught.value)


# -- what all share ----------------------------------------------------------------------------------------------------


def test_panels_have_only_finite_numbers() -> None:
    metrics = {
        "loss": 1,
        "train_runtime": 2.0,
        "eval_a_loss": 3.0,
        "x/y": 4.0,
        "nan": float("nan"),
        "s": "x",
        "b": True,
        "n": None,
    }
    assert panels(metrics) == {"train/loss": 1, "train/runtime": 2.0, "eval/a_loss": 3.0, "x/y": 4.0}


class Broken(Tracker):
    def log(self, metrics: Any, step: int) -> None:
        raise ConnectionError("no network")

    def finish(self, exit_code: int = 0) -> None:
        raise ConnectionError("no network")


def test_tracker_errors_do_not_stop_the_run(run: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    with tracking(Broken(), run, {}, "run") as tracker:
        callback = TrackerCallback(tracker)
        for step in range(3):
            callback.on_log(None, TrainerState(global_step=step), None, logs={"loss": 1.0})  # type: ignore[arg-type]
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        "Broken could not log: no network; training continues",
        "Broken could not finish: no network; training continues",
    ]


def test_only_the_main_process_tracks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loud(Tracker):
        def start(self, *arguments: Any, **keywords: Any) -> None:
            raise AssertionError("rank 1 tracks")

    monkeypatch.setenv("RANK", "1")
    with tracking(Loud(), RunDirectory(tmp_path / "run"), {}, "run") as tracker:
        tracker.log({"loss": 1.0}, 1)


def test_tracker_none_is_a_tracker(run: RunDirectory) -> None:
    with tracking(None, run, {}, "run") as tracker:
        assert isinstance(tracker, Guarded)
        tracker.log({"loss": 1.0}, 1)
        tracker.artifact(run.path, "x", "adapter")
    assert not run.path.exists()


def test_an_installed_library_is_returned() -> None:
    assert library("os") is os
