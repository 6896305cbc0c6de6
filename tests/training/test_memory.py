"""Out of memory: the error message, and automatically shrinking batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sft.config.errors import RunFailed
from sft.training.memory import is_out_of_memory, smaller_batch
from sft.training.trainer.trainer import SftTrainer

ROOT = Path(__file__).parents[2]
WEIGHTS = "adapter/adapter_model.safetensors"
DROPOUT = "lora.lora_dropout=0.1"


@pytest.fixture
def limited(monkeypatch):
    """Makes every training batch of more rows than `most` run out of memory, from a step on; gives the batches' sizes."""
    sizes = []

    def limit(most, step=1):
        compute = SftTrainer.compute_loss

        def guarded(self, model, inputs, *args, **kwargs):
            rows = len(inputs["lengths"])
            if rows > most and self.state.global_step + 1 >= step:
                torch.rand(5)  # what a forward pass draws before it fails
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            sizes.append(rows)
            return compute(self, model, inputs, *args, **kwargs)

        monkeypatch.setattr(SftTrainer, "compute_loss", guarded)
        return sizes

    return limit


def losses(result):
    lines = [json.loads(line) for line in (result.directory / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_a_batch_that_does_not_fit_is_halved_and_the_effective_batch_stays(run, limited):
    epoch = ("trainer.max_steps=-1", "trainer.num_train_epochs=2", "dataset.sources.tickets.generator.rows=22", DROPOUT)
    small = run(*epoch, "trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=4", to="small")
    sizes = limited(2)
    found = run(*epoch, "trainer.per_device_train_batch_size=8", "trainer.auto_find_batch_size=true", to="found")
    assert set(sizes) == {2}
    assert found.metrics["steps"] == small.metrics["steps"] == 6
    assert (found.directory / WEIGHTS).read_bytes() == (small.directory / WEIGHTS).read_bytes()
    assert losses(found) == losses(small)
    for figure in ("train_loss", "eval_loss", "total_tokens", "trained_tokens", "epochs"):
        assert found.metrics[figure] == small.metrics[figure], figure
    assert "out of memory at step 1" in (found.directory / "train.log").read_text()


@pytest.mark.slow
def test_running_out_of_memory_later_repeats_no_step(run, limited):
    options = ("trainer.per_device_train_batch_size=4", "trainer.max_steps=6", "trainer.logging_steps=4")
    whole = run(*options, to="whole")
    sizes = limited(2, step=4)
    found = run(*options, "trainer.auto_find_batch_size=true", to="found")
    assert sizes == [4] * 3 + [2] * 6
    assert losses(found) == pytest.approx(losses(whole), rel=1e-5)
    assert found.metrics["trained_tokens"] == whole.metrics["trained_tokens"]
    assert (found.directory / "checkpoints" / "checkpoint-3").is_dir()


@pytest.mark.slow
def test_a_resumed_run_keeps_the_batch_that_was_found(run, limited):
    from transformers import TrainerCallback

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise RuntimeError("power cut")

    options = ("trainer.auto_find_batch_size=true", "trainer.save_strategy=steps", "trainer.save_steps=2", DROPOUT)
    sizes = limited(2)
    whole = run(*options, to="whole")
    with pytest.raises(RunFailed, match="power cut"):
        run(*options, to="cut", callbacks=[Break()])
    sizes.clear()
    cut = run(*options, to="cut")
    assert sizes == [2] * 4
    assert (cut.directory / WEIGHTS).read_bytes() == (whole.directory / WEIGHTS).read_bytes()


@pytest.mark.slow
def test_a_single_row_that_does_not_fit_is_reported(run, limited):
    limited(0)
    with pytest.raises(RunFailed) as failed:
        run("trainer.auto_find_batch_size=true")
    text = str(failed.value)
    assert "out of memory in training: CUDA out of memory" in text
    order = [
        text.index(f"    {part}")
        for part in ("dataset.max_length=", "lora.r=4", "trainer.gradient_checkpointing=true", "quant=nf4")
    ]
    assert order == sorted(order)


@pytest.mark.slow
def test_the_message_keeps_the_effective_batch_and_says_how_to_resume(run, limited, tmp_path):
    limited(3, step=3)
    with pytest.raises(RunFailed) as failed:
        run("trainer.save_strategy=steps", "trainer.save_steps=1", "trainer.gradient_accumulation_steps=2")
    text = str(failed.value)
    smaller_batch = "trainer.per_device_train_batch_size=1 trainer.gradient_accumulation_steps=8"
    assert f"{smaller_batch}  now 4 and 2; the effective batch stays 8" in text
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    changes = "trainer.per_device_train_batch_size,trainer.gradient_accumulation_steps"
    assert f"hydra.run.dir={tmp_path / 'run'} and\n    {smaller_batch} 'allow_changes=[{changes}]'" in text
    resumed = run(
        "trainer.save_strategy=steps",
        "trainer.save_steps=1",
        *smaller_batch.split(),
        f"allow_changes=[{changes}]",
    )
    sessions = json.loads((resumed.directory / "run.json").read_text())["sessions"]
    assert [session["resumed_from"] for session in sessions] == [None, "checkpoint-2"]


@pytest.mark.slow
def test_an_evaluation_that_does_not_fit_shrinks_no_training_batch(run, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("sft.training.trainer.evaluating.evaluate_loss", fail)
    with pytest.raises(RunFailed, match=r"out of memory in evaluation[^$]*trainer.per_device_eval_batch_size=2"):
        run("trainer.auto_find_batch_size=true", "trainer.eval_strategy=steps", "trainer.eval_steps=2")


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_out_of_memory_errors_are_recognized(error, answer):
    assert is_out_of_memory(error) is answer


def test_smaller_batches_divide_the_effective_one():
    assert [
        smaller_batch(8, 8),
        smaller_batch(6, 6),
        smaller_batch(5, 5),
        smaller_batch(8, 24),
        smaller_batch(2, 2),
    ] == [4, 3, 1, 4, 1]
    assert all(24 % smaller_batch(batch, 24, 4) == 0 for batch in range(1, 25))


SCRIPT = """
import resource, sys
from transformers import TrainerCallback
from sft.api import compose, train
from sft.config.errors import RunFailed

class Limit(TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 120 * 2**20, resource.RLIM_INFINITY))

directory, *options = sys.argv[1:]
try:
    train(compose(*options, f"hydra.run.dir={directory}/fails"), callbacks=[Limit()])
except RunFailed as error:
    print(error)
found = compose(*options, f"hydra.run.dir={directory}/found", "trainer.auto_find_batch_size=true")
print("steps", train(found, callbacks=[Limit()]).metrics["steps"])
"""


@pytest.mark.slow
def test_a_limited_address_space(tmp_path):
    """16 rows of 1,300 tokens, whose logits take 13 MB a row and as much again in the loss, on 120 MiB."""
    rows = tmp_path / "long.jsonl"
    answer = " ".join(str(number) for number in range(330))
    turns = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": answer}]
    rows.write_text("".join(json.dumps({"messages": turns, "n": row}) + "\n" for row in range(16)))
    options = ["model=tiny", "lora=r8", "dataset=local", f"dataset.path={rows}", "dataset.eval_fraction=0"]
    options += ["dataset.num_proc=0", "model.dtype=float32", "trainer.per_device_train_batch_size=16"]
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), *options, "trainer.max_steps=1", "callbacks=quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "out of memory in training: can't allocate memory: you tried to allocate" in done.stdout
    batch = "trainer.per_device_train_batch_size=4 trainer.gradient_accumulation_steps=4"
    assert f"{batch}  now 16 and 1; the effective batch stays 16" in done.stdout
    assert done.stdout.splitlines()[-1] == "steps 1"
    assert "the effective batch stays 16" in (tmp_path / "found" / "train.log").read_text()
