"""A tiny model in a real training loop, and single events of a callback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from sft.run.directory import RunDirectory
from sft.training.callbacks.display import quiet_trainer

ROWS = [{"input_ids": [i % 7 + 1] * 6, "labels": [i % 7 + 1] * 6} for i in range(16)]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def tiny() -> Callable[[], GPT2LMHeadModel]:
    """Makes the same small model each time."""

    def make() -> GPT2LMHeadModel:
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=10, n_positions=32, n_embd=8, n_layer=1, n_head=1, eos_token_id=9, bos_token_id=9
        )
        return GPT2LMHeadModel(config)

    return make


@pytest.fixture
def trainer(tmp_path: Path, tiny: Callable[[], GPT2LMHeadModel]) -> Callable[..., Trainer]:
    """Makes a trainer of six logged steps; `evaluate` is True, or the sets to evaluate by name."""

    def make(callbacks: list[TrainerCallback], evaluate: Any = False, **arguments: Any) -> Trainer:
        given = {
            "max_steps": 6,
            "logging_steps": 1,
            "save_strategy": "no",
            "per_device_train_batch_size": 4,
            **arguments,
        }
        built = Trainer(
            tiny(),
            TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True, **given),
            train_dataset=ROWS,
            eval_dataset={name: ROWS[:4] for name in evaluate}
            if isinstance(evaluate, list)
            else ROWS[:4]
            if evaluate
            else None,
            callbacks=callbacks,
        )
        quiet_trainer(built)
        return built

    return make


@pytest.fixture
def event() -> Callable[..., TrainerControl]:
    """Calls one event of a callback by hand: event("on_log", callback, step, logs={...}).

    `history` is what the trainer has logged by then.
    """

    def call(name: str, callback: TrainerCallback, step: int, history: Any = (), **more: Any) -> TrainerControl:
        control = TrainerControl()
        arguments = SimpleNamespace(
            eval_strategy="steps",
            metric_for_best_model=None,
            greater_is_better=None,
            bf16=False,
            fp16=False,
            deepspeed=None,
            fsdp=None,
        )
        state = TrainerState(global_step=step, max_steps=100, log_history=list(history))
        getattr(callback, name)(arguments, state, control, **more)
        return control

    return call
