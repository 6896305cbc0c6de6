"""Sweeps through the real command: directories, record, failing jobs, resuming, a shared base."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sft.api import compose, train

ROOT = Path(__file__).parents[2]
BASE = [
    "model=tiny",
    "model.dtype=float32",
    "dataset=tickets",
    "dataset.sources.tickets.generator.rows=24",
    "dataset.eval_sources.known.generator.rows=4",
    "dataset.eval_sources.unseen=null",
    "dataset.num_proc=0",
    "trainer.per_device_train_batch_size=4",
    "trainer.max_steps=3",  # the second step takes a rate of 1e38, the third finds out
    "callbacks=quiet",
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def sweep(command):
    """A directory and overrides -> the sweep's ended process."""
    return lambda directory, *overrides, **kwargs: command(
        "train", "-m", *BASE, *overrides, f"hydra.sweep.dir={directory}", **kwargs
    )


def record(directory: Path) -> dict:
    return json.loads((directory / "sweep.json").read_text())


def adapter(run: Path) -> bytes:
    return (run / "adapter/adapter_model.safetensors").read_bytes()


def alone(directory, *overrides) -> bytes:
    return adapter(train(compose(*BASE, *overrides, f"hydra.run.dir={directory}")).directory)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, sweep):
    """Jobs of two adapters, each with one that fails; (directory, process)."""
    directory = tmp_path_factory.mktemp("sweeps") / "mixed"
    return directory, sweep(directory, "lora=r8,dora", "trainer.learning_rate=1e-3,1e38")


@pytest.fixture(scope="module")
def shared(tmp_path_factory, sweep):
    """Jobs that share a base, and jobs that must not; (directory, process)."""
    directory = tmp_path_factory.mktemp("sweeps") / "shared"
    # dropout is drawn in each; PiSSA writes into the base, full fine-tuning trains it
    return directory, sweep(directory, "lora=r8,dora,pissa,none", "trainer.learning_rate=1e-3,1e38")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, sweep):
    directory = tmp_path_factory.mktemp("sweeps") / "finished"
    return directory, sweep(directory, "lora=r8", "seed=1,2")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory, sweep):
    directory = tmp_path_factory.mktemp("sweeps") / "quantized"
    return directory, sweep(directory, "quant=nf4", "lora=r8,loftq", "seed=1,2")


def test_each_job_has_its_own_directory_named_as_typed(mixed):
    directory, _ = mixed
    names = [job["directory"] for job in record(directory)["jobs"]]
    assert names == [
        "0_lora-r8_learning_rate-1e-3",
        "1_lora-r8_learning_rate-1e38",
        "2_lora-dora_learning_rate-1e-3",
        "3_lora-dora_learning_rate-1e38",
    ]
    assert len(set(names)) == 4 and all((directory / name / "config.resolved.yaml").exists() for name in names)


def test_jobs_that_fail_do_not_stop_the_others(mixed):
    directory, done = mixed
    assert done.returncode == 1, done.stderr
    assert record(directory)["swept"] == ["lora", "trainer.learning_rate"]
    assert record(directory)["jobs"][3]["overrides"] == {"lora": "dora", "trainer.learning_rate": "1e38"}
    states = {job["directory"]: job["status"] for job in record(directory)["jobs"]}
    assert {name for name, state in states.items() if state == "failed"} == {n for n in states if n.endswith("1e38")}
    assert {state for name, state in states.items() if name.endswith("1e-3")} == {"finished"}
    assert "2 of 4 jobs failed" in done.stderr
    failed = directory / "1_lora-r8_learning_rate-1e38"
    assert json.loads((failed / "metrics.json").read_text())["status"] == "failed"
    assert "Traceback" in (failed / "train.log").read_text()


@pytest.mark.slow
def test_a_shared_base_gives_the_same_results_as_single_runs(shared, tmp_path):
    directory, done = shared
    # every failed job has the base of the one before, but for pissa and none: these load their own
    assert done.stderr.count("the base model of the previous job is reused") == 2
    for number, lora in ((0, "r8"), (2, "dora"), (4, "pissa")):
        run = directory / f"{number}_lora-{lora}_learning_rate-1e-3"
        assert adapter(run) == alone(tmp_path / lora, f"lora={lora}", "trainer.learning_rate=1e-3"), lora
    whole = train(compose(*BASE, "lora=none", "trainer.learning_rate=1e-3", f"hydra.run.dir={tmp_path / 'none'}"))
    weights = "model/model.safetensors"
    swept = directory / "6_lora-none_learning_rate-1e-3" / weights
    assert swept.read_bytes() == (whole.directory / weights).read_bytes()


@pytest.mark.slow
def test_a_shared_quantized_base_gives_the_same_results_as_single_runs(quantized, tmp_path):
    directory, done = quantized
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the base model of the previous job is reused") == 1  # r8 for its second seed
    for number, lora, seed in ((1, "r8", 2), (2, "loftq", 1), (3, "loftq", 2)):
        run = directory / f"{number}_lora-{lora}_seed-{seed}"
        want = alone(tmp_path / run.name, "quant=nf4", f"lora={lora}", f"seed={seed}")
        assert adapter(run) == want, run.name


def test_a_job_after_a_failed_one_gives_the_same_result_as_alone(mixed, tmp_path):
    directory, done = mixed
    assert done.stderr.count("the base model of the previous job is reused") == 2
    run = directory / "2_lora-dora_learning_rate-1e-3"
    assert adapter(run) == alone(tmp_path / "dora", "lora=dora", "trainer.learning_rate=1e-3")


def test_the_sweep_is_recorded_and_ranked(finished):
    directory, done = finished
    content = record(directory)
    assert (content["status"], content["swept"]) == ("finished", ["seed"])
    assert "sft.train -m model=tiny" in content["command"]
    assert content["jobs"][1]["overrides"] == {"seed": "2"}
    for name in ("leaderboard.csv", "leaderboard.md", "leaderboard.png"):
        assert (directory / name).stat().st_size > 0
    assert "sft.chat run=" in done.stdout


def test_repeating_the_command_trains_nothing_and_a_different_one_is_refused(finished, sweep):
    directory, _ = finished
    stamps = {path: path.stat().st_mtime_ns for path in directory.glob("*/adapter/*.safetensors")}
    again = sweep(directory, "lora=r8", "seed=1,2")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in directory.glob("*/adapter/*.safetensors")} == stamps
    other = sweep(directory, "lora=r8", "seed=1,3")
    assert other.returncode == 2
    assert "seed=1,2 then, seed=1,3 now" in other.stderr
    assert {path: path.stat().st_mtime_ns for path in directory.glob("*/adapter/*.safetensors")} == stamps


@pytest.mark.slow
def test_a_changed_yaml_under_the_same_overrides_is_refused_before_the_first_job(tmp_path, sweep):
    conf = tmp_path / "conf/lora"
    conf.mkdir(parents=True)
    text = "_target_: peft.LoraConfig\nr: {}\ntarget_modules: [q_proj]\n"
    (conf / "mine.yaml").write_text(text.format(4))
    directory = tmp_path / "sweep"
    first = sweep(directory, "lora=mine", "seed=1,2", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (conf / "mine.yaml").write_text(text.format(5))
    second = sweep(directory, "lora=mine", "seed=1,2", cwd=tmp_path)
    assert second.returncode == 2
    assert "lora.r" in second.stderr and "4" in second.stderr and "5" in second.stderr


@pytest.mark.slow
def test_a_killed_sweep_resumes_to_the_same_results(tmp_path, sweep):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ("lora=r8", "lora.r=4,8", "trainer.max_steps=12", "trainer.save_strategy=steps", "trainer.save_steps=3")
    assert sweep(whole, *options).returncode == 0
    line = [sys.executable, "-m", "sft.train", "-m", *BASE, *options, f"hydra.sweep.dir={cut}"]
    process = subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(cut.glob("1_*/checkpoints/checkpoint-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert record(cut)["status"] == "running"
    done = sweep(cut, *options)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stderr
    for job in record(whole)["jobs"]:
        name = job["directory"]
        assert adapter(cut / name) == adapter(whole / name)
        want, got = (json.loads((root / name / "metrics.json").read_text()) for root in (whole, cut))
        assert (got["eval_loss"], got["train_loss"]) == (want["eval_loss"], want["train_loss"])
    assert [job["status"] for job in record(cut)["jobs"]] == ["finished", "finished"]


@pytest.mark.slow
def test_an_interrupted_sweep_writes_its_state(tmp_path):
    directory = tmp_path / "sweep"
    line = [sys.executable, "-m", "sft.train", "-m", *BASE, "lora=r8", "seed=1,2", "trainer.max_steps=100000"]
    process = subprocess.Popen(
        [*line, f"hydra.sweep.dir={directory}"], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not list(directory.glob("0_*/metrics.jsonl")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    content = record(directory)
    assert content["status"] == "interrupted"
    assert [job["status"] for job in content["jobs"]] == ["interrupted", "pending"]


@pytest.mark.slow
def test_failed_jobs_are_retried_or_left(tmp_path, sweep):
    directory = tmp_path / "sweep"
    options = ("lora=r8", "trainer.learning_rate=1e38", "seed=1,2", "sweep.retry_failed=false")
    assert sweep(directory, *options).returncode == 1
    log = directory / "0_seed-1" / "train.log"
    first = log.read_text()
    assert sweep(directory, *options).returncode == 1
    assert "failed earlier and not retried (sweep.retry_failed=false)" in log.read_text().removeprefix(first)
    assert "covers" not in log.read_text().removeprefix(first)
    content = record(directory)
    assert [job["status"] for job in content["jobs"]] == ["failed", "failed"]
    assert "nan" in content["jobs"][0]["error"].lower() or "finite" in content["jobs"][0]["error"]
