"""Two real processes on the CPU, started by torchrun with gloo, and one run directory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sft.config.entry.surroundings import refuse_several
from sft.config.errors import UserError
from sft.distributed.sharding import check_sharding_supported, with_fsdp_checkpointing

ROOT = Path(__file__).parents[2]
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
ROWS = [
    "model=tiny",
    "model.dtype=float32",
    "lora=r8",
    "lora.lora_dropout=0",
    "dataset=tickets",
    "dataset.sources.tickets.generator.rows=33",  # in batches of 8, the last of one row: a rank gets none
    "dataset.eval_sources.known.generator.rows=5",
    "dataset.eval_sources.unseen.generator.rows=4",
    "dataset.num_proc=0",
    "trainer.learning_rate=1e-2",
    "trainer.num_train_epochs=2",
    "trainer.logging_steps=1",
    "trainer.per_device_eval_batch_size=2",
    "trainer.bf16=false",
    "callbacks=quiet",
]
HALF = ["trainer.per_device_train_batch_size=4"]


def launch(*overrides, launcher=TORCHRUN, command="train", cwd=ROOT, **environment):
    """Two processes of a command; its output as text."""
    return subprocess.run(
        [sys.executable, "-m", *launcher, f"sft.{command}", *overrides],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )


def fault(what, rank=1, step=3):
    return [
        f"++callbacks.fault={{_target_: faults.Fault, what: {what}, rank: {rank}, step: {step}}}",
        "allow_targets=[faults.Fault]",
    ]


def read(directory, name="metrics.json"):
    return json.loads((directory / name).read_text())


def losses(directory):
    """Each logged loss, and each evaluation's, with its step."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], key, line[key]) for line in lines for key in ("loss", "eval_loss") if key in line]


def weights(directory):
    return (directory / "adapter" / "adapter_model.safetensors").read_bytes()


def last_words(done):
    """What sft itself said at the end: stderr up to torchrun's own lines."""
    return done.stderr.partition("torch/distributed/elastic")[0].rpartition("error: ")[2]


def assert_same_curve(one, two, within=1e-5):
    first, second = losses(one), losses(two)
    assert [line[:2] for line in first] == [line[:2] for line in second]
    assert max(abs(a[2] - b[2]) for a, b in zip(first, second, strict=True)) < within


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes, begun in a directory that the clock names: (its directory, what was printed)."""
    home = tmp_path_factory.mktemp("two")
    done = launch(*ROWS, *HALF, cwd=home)
    assert done.returncode == 0, done.stderr
    (directory,) = (home / "outputs" / "sft").iterdir()  # the ranks agreed on one
    return directory, done


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of one process with the same global batch."""
    from sft.api import compose, train

    directory = tmp_path_factory.mktemp("one") / "run"
    train(compose(*ROWS, "trainer.per_device_train_batch_size=8", f"hydra.run.dir={directory}"))
    return directory


@pytest.mark.slow
def test_two_processes_have_the_same_losses_as_one(one, two):
    directory, _ = two
    assert_same_curve(one, directory)
    first, second = read(one), read(directory)
    same = ("status", "steps", "epochs", "total_tokens", "trained_tokens", "padding")
    assert {key: first[key] for key in same} == {key: second[key] for key in same}


@pytest.mark.slow
def test_only_rank_0_writes_and_prints(two):
    directory, done = two
    assert done.stdout.splitlines() == [f"{directory}  " + done.stdout.partition("  ")[2].rstrip("\n")]
    assert "[rank 1]" not in done.stderr
    record = read(directory, "run.json")
    assert (record["status"], record["world_size"], len(record["sessions"])) == ("finished", 2, 1)
    assert not (directory / ".lock").exists()
    assert (directory / ".hydra" / "overrides.yaml").is_file()
    names = {path.name for path in (directory / "checkpoints" / "checkpoint-10").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "manifest.json"} <= names
    log = (directory / "train.log").read_text()
    assert log.count("first step after") == 1


@pytest.mark.slow
def test_accumulated_batches_have_the_same_losses_as_one_process(one, tmp_path):
    both = ["trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2"]
    done = launch(*ROWS, *both, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert_same_curve(one, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [["lora=none", "trainer.learning_rate=1e-3"], ["dataset.packing=true", "dataset.max_length=256"]]
)
def test_full_fine_tunes_and_packs_have_the_same_losses_as_one_process(more, tmp_path):
    from sft.api import compose, train

    rows = [override for override in ROWS if not override.startswith("lora") or "lora=none" not in more]
    train(compose(*rows, "trainer.per_device_train_batch_size=8", *more, f"hydra.run.dir={tmp_path / 'one'}"))
    done = launch(*rows, *HALF, *more, f"hydra.run.dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    assert_same_curve(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_an_interrupted_run_of_two_processes_ends_like_an_uninterrupted_one(tmp_path):
    dropout = ["lora.lora_dropout=0.1", "trainer.logging_steps=2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert launch(*ROWS, *HALF, *dropout, f"hydra.run.dir={whole}").returncode == 0
    stopped = launch(*ROWS, *HALF, *dropout, *fault("SIGTERM"), f"hydra.run.dir={cut}")
    assert stopped.returncode == 1
    assert "stopped by SIGTERM at step 3" in stopped.stderr
    assert "exitcode  : 143" in stopped.stderr
    assert (read(cut, "run.json")["status"], [p.name for p in (cut / "checkpoints").iterdir()]) == (
        "interrupted",
        ["checkpoint-3"],
    )
    again = launch(*ROWS, *HALF, *dropout, f"hydra.run.dir={cut}", "allow_changes=[callbacks.fault]")
    assert again.returncode == 0, again.stderr
    assert weights(cut) == weights(whole)
    assert losses(cut) == losses(whole)
    assert read(cut)["total_tokens"] == read(whole)["total_tokens"]


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_with_two(two):
    directory, _ = two
    copied = directory.with_name("copied")
    subprocess.run(["cp", "-r", directory, copied], check=True)
    record = read(copied, "run.json")
    (copied / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    done = subprocess.run(
        [sys.executable, "-m", "sft.train", *ROWS, *HALF, f"hydra.run.dir={copied}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "world_size: this run was started with 2 processes, not 1" in done.stderr
    assert "torchrun --nproc-per-node=2" in done.stderr


@pytest.mark.slow
def test_torchrun_forwards_a_signal(tmp_path):
    done = launch(*ROWS, *HALF, *fault("agent"), f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode != 0
    assert "stopped by SIGTERM at step 3" in done.stderr
    assert read(tmp_path / "run", "run.json")["status"] == "interrupted"
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-3" / "manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "rank", "said"),
    [
        ("raise", 1, "[rank 1] ValueError: a fault on purpose"),
        ("raise", 0, "ValueError: a fault on purpose"),
        ("kill", 1, "exited without an error report: killed, or out of memory"),
    ],
)
def test_a_failing_rank_ends_all_and_is_named(what, rank, said, tmp_path):
    done = launch(*ROWS, *HALF, *fault(what, rank), f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert said in done.stderr.partition("FAILED")[0]
    assert said in done.stderr.rpartition("FAILED")[2]  # torchrun's own summary has the reason too
    record = read(tmp_path / "run", "run.json")
    assert record["status"] == "failed"
    assert said in record["error"]
    assert read(tmp_path / "run")["status"] == "failed"
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.slow
def test_a_non_finite_loss_on_one_rank_affects_all(tmp_path):
    done = launch(*ROWS, *HALF, *fault("poison"), f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert last_words(done).startswith("NonFinite: the loss of step 3 is not finite on tickets rows ")
    kept = (tmp_path / "run" / "nonfinite_step-3.jsonl").read_text().splitlines()
    assert len(kept) == 4  # the rows of rank 1, written by rank 0


@pytest.mark.slow
def test_broken_rows_are_reported_once(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    done = launch(*ROWS[:4], *HALF, "dataset=local", f"dataset.path={bad}", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert done.stderr.count("error: dataset.sources.local: ") == 1
    assert "no assistant turn" in last_words(done)
    assert "exitcode  : 2" in done.stderr
    assert read(tmp_path / "run", "run.json")["status"] == "failed"


@pytest.mark.slow
def test_a_wrong_key_is_reported_once(tmp_path):
    done = launch(*ROWS, "trainer.learnig_rate=1", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.stderr.count("error: trainer.learnig_rate: no such key") == 1
    assert "exitcode  : 2" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_without_a_cache_only_rank_0_tokenizes(tmp_path):
    done = launch(*ROWS, *HALF, "dataset.cache=false", f"hydra.run.dir={tmp_path / 'run'}", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("sft-rows-*"))


@pytest.mark.slow
def test_token_limited_batches_are_distributed(tmp_path):
    done = launch(*ROWS, "trainer.max_tokens_per_batch=400", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    report, figures = read(tmp_path / "run", "data_report.json"), read(tmp_path / "run")
    assert figures["total_tokens"] == 2 * report["train"]["tokens"]
    assert figures["steps"] == 2 * report["train"]["steps_per_epoch"]


@pytest.mark.slow
def test_accelerate_launch_starts_the_same_run(one, tmp_path):
    how = (
        "accelerate.commands.launch",
        "--multi_gpu",  # its name for several processes; without it there is one on a machine without GPUs
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
    )
    done = launch(*ROWS, *HALF, f"hydra.run.dir={tmp_path / 'run'}", launcher=(*how, "--dynamo_backend", "no", "-m"))
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "run", "run.json")["world_size"] == 2
    assert_same_curve(one, tmp_path / "run")


@pytest.mark.slow
def test_reproduce_replays_a_run_of_two_with_two(two):
    directory, _ = two
    done = launch(f"run={directory}", command="reproduce", cwd=directory.parents[2])
    assert done.returncode == 0, done.stderr
    assert "adapter/adapter_model.safetensors" in done.stdout
    assert "NO" not in done.stdout.split()


def launch_spread(*overrides):
    """Two processes of a training with FSDP2."""
    script = str(Path(__file__).with_name("fsdp_on_cpu.py"))
    return subprocess.run(
        [sys.executable, "-m", *TORCHRUN[:-1], script, *overrides, "trainer=fsdp", "trainer.use_cpu=false"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.slow
def test_an_interrupted_sharded_run_ends_like_an_uninterrupted_one(tmp_path):
    rows = [*ROWS, *HALF, "lora.lora_dropout=0.1"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = launch_spread(*rows, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stderr
    stopped = launch_spread(*rows, *fault("SIGTERM"), f"hydra.run.dir={cut}")
    assert "stopped by SIGTERM at step 3" in stopped.stderr
    assert read(cut, "run.json")["status"] == "interrupted"
    again = launch_spread(*rows, f"hydra.run.dir={cut}", "allow_changes=[callbacks.fault]")
    assert again.returncode == 0, again.stderr
    assert "checkpoint-3" in again.stderr
    assert losses(cut) == losses(whole)
    first, second = (load_file(run / "adapter/adapter_model.safetensors") for run in (whole, cut))
    assert max(float((first[key] - second[key]).abs().max()) for key in first) == 0


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["lora=none", "trainer.learning_rate=1e-3"]])
def test_sharded_weights_have_the_same_losses_as_one_process_and_full_files(more, tmp_path):
    from sft.api import compose, train

    rows = [override for override in ROWS if not override.startswith("lora") or not more]
    train(compose(*rows, "trainer.per_device_train_batch_size=8", *more, f"hydra.run.dir={tmp_path / 'one'}"))
    done = launch_spread(*rows, *HALF, *more, f"hydra.run.dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    assert_same_curve(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "two" / "checkpoints" / "checkpoint-10" / "pytorch_model_fsdp.bin").is_file()
    name = "model/model.safetensors" if more else "adapter/adapter_model.safetensors"
    first, second = (load_file(tmp_path / run / name) for run in ("one", "two"))
    assert {key: value.shape for key, value in first.items()} == {key: value.shape for key, value in second.items()}
    assert max(float((first[key] - second[key]).abs().max()) for key in first) < 1e-4


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("trainer=fsdp", "trainer.fsdp: it needs several processes"),
        ("trainer=deepspeed_zero3", "trainer.deepspeed: DeepSpeed is not installed"),
    ],
)
def test_sharding_needs_several_processes_and_its_library(override, what, monkeypatch):
    from sft.api import compose

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape(what)):
        check_sharding_supported(compose("model=tiny", override))


def test_sharding_needs_a_gpu(monkeypatch):
    from sft.api import compose

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("sft.distributed.sharding.has_gpu", lambda: False)
    with pytest.raises(UserError, match=r"trainer\.fsdp: it needs GPUs"):
        check_sharding_supported(compose("model=tiny", "trainer=fsdp"))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["trainer=fsdp", "quant=nf4"], "quant: quantized weights cannot be sharded"),
        (["trainer=deepspeed_zero3", "quant=nf4"], "quant: quantized weights cannot be sharded"),
        (["trainer=fsdp", "evaluation.generate=true"], "evaluation.generate: answers are generated by one"),
        (["trainer=fsdp", "lora=pissa"], "lora.init_lora_weights: an adapter that is initialized"),
        (["trainer=deepspeed_zero2", "trainer.fsdp=true"], "trainer.deepspeed: FSDP and DeepSpeed are both on"),
        (
            ["trainer=fsdp", "trainer.auto_find_batch_size=true"],
            "trainer.auto_find_batch_size: auto_find_batch_size works in one process only",
        ),
    ],
)
def test_settings_incompatible_with_sharding_are_refused_before_anything_is_loaded(overrides, key):
    from sft.api import compose

    with pytest.raises(UserError, match=key):
        compose("model=tiny", *overrides)


@pytest.mark.parametrize("name", ["fsdp", "deepspeed_zero2", "deepspeed_zero3"])
def test_the_sharding_options_compose(name):
    from sft.api import compose

    assert compose("model=tiny", f"trainer={name}").trainer.learning_rate == 2e-4


def test_fsdp_uses_its_own_activation_checkpointing():
    found = with_fsdp_checkpointing({"fsdp": True, "gradient_checkpointing": True, "fsdp_config": {"version": 2}})
    assert found == {
        "fsdp": True,
        "gradient_checkpointing": False,
        "fsdp_config": {"version": 2, "activation_checkpointing": True},
    }


@pytest.mark.parametrize(("arguments", "key"), [(["-m", "lora.r=4,8"], "-m: a sweep's jobs"), ([], "")])
def test_sweeps_and_other_commands_need_one_process(arguments, key, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    name, together = ("train", True) if arguments else ("evaluate", False)
    with pytest.raises(UserError, match=key or "sft.evaluate: this command works in one process"):
        refuse_several(name, bool(arguments), together)
