"""Callbacks that record: metrics.jsonl, losses, memory."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from sft.run.directory import RunDirectory
from sft.training.callbacks.base import bind_all
from sft.training.callbacks.loss_logger import LossLogger
from sft.training.callbacks.memory import MemoryMonitor
from sft.training.callbacks.metrics_jsonl import MetricsJsonl


def test_every_logged_step_is_one_line(run: RunDirectory, trainer) -> None:
    callbacks: list[TrainerCallback] = [MemoryMonitor(), MetricsJsonl()]
    bind_all(callbacks, run)
    trainer(callbacks, True, eval_strategy="steps", eval_steps=3).train()
    lines = run.read_jsonl(run.metrics_jsonl)
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5, 6]
    assert {"epoch", "learning_rate", "grad_norm", "memory_bytes", "peak_memory_bytes", "time"} <= set(training[0])
    assert training[0]["peak_memory_bytes"] >= training[0]["memory_bytes"] > 0
    assert [line["step"] for line in lines if "eval_loss" in line] == [3, 6]
    assert lines[-1]["train_loss"] == pytest.approx(sum(line["loss"] for line in training) / 6)


def test_a_resumed_run_has_no_step_twice(run: RunDirectory, trainer, tmp_path: Path) -> None:
    def callbacks() -> list[TrainerCallback]:
        found: list[TrainerCallback] = [MetricsJsonl()]
        bind_all(found, run)
        return found

    whole = trainer(callbacks(), save_strategy="steps", save_steps=4)
    whole.train()
    before = [
        {k: v for k, v in line.items() if k != "time"} for line in run.read_jsonl(run.metrics_jsonl) if "loss" in line
    ]
    with open(run.metrics_jsonl, "a") as file:
        file.write('{"step": 7, "lo')
    trainer(callbacks()).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    lines = run.read_jsonl(run.metrics_jsonl)
    after = [{k: v for k, v in line.items() if k != "time"} for line in lines if "loss" in line]
    assert after == before
    assert sum("train_runtime" in line for line in lines) == 1
    trainer(callbacks(), max_steps=1).train()
    assert [line["step"] for line in run.read_jsonl(run.metrics_jsonl)] == [1, 1]  # a fresh start, and its summary


def test_a_non_finite_loss_is_null(event, run: RunDirectory) -> None:
    callback = MetricsJsonl()
    callback.bind(run)
    event("on_log", callback, 3, logs={"loss": float("nan"), "grad_norm": torch.tensor(2.0)})
    line = json.loads(run.metrics_jsonl.read_text())
    assert (line["step"], line["loss"], line["grad_norm"]) == (3, None, 2.0)


def test_a_spike_is_reported_and_noise_is_not(event, caplog: pytest.LogCaptureFixture) -> None:
    callback = LossLogger(window=10)
    for step, loss in enumerate([2.0, 2.2, 1.8, 2.1, 1.9, 2.0, 3.9, 2.0, 9.0, float("nan")]):
        event("on_log", callback, step, logs={"loss": loss})
    assert callback.spikes == 1
    assert "loss spike at step 8: 9, where the last 8 were around 2" in caplog.text
    small = LossLogger(window=2)
    for step, loss in enumerate([0.01, 0.01, 0.05]):
        event("on_log", small, step, logs={"loss": loss})
    assert small.spikes == 0
    assert LossLogger(spike_factor=None).spike_factor is None


def test_each_line_is_in_the_log(event, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        event("on_log", LossLogger(), 7, logs={"loss": 1.23456789, "epoch": 1})
    assert "step 7/100: loss 1.2346, epoch 1" in caplog.text


def test_low_memory_is_warned_about_once(event, caplog: pytest.LogCaptureFixture) -> None:
    callback = MemoryMonitor(warn_above=1e-9)
    for step in range(3):
        event("on_log", callback, step, logs={"loss": 1.0})
    assert caplog.text.count("GiB of memory in use") == 1
