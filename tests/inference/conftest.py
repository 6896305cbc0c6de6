"""One small run for all tests of what is done with a finished run, and the doors' functions in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.api import compose, train

TINY = [
    "model=tiny",
    "lora=r8",
    "dataset=tickets",
    "dataset.sources.tickets.generator.rows=24",
    "dataset.eval_sources.known.generator.rows=4",
    "dataset.eval_sources.unseen.generator.rows=4",
    "dataset.num_proc=0",
    "model.dtype=float32",
    "trainer.per_device_train_batch_size=4",
    "trainer.max_steps=4",
    "trainer.learning_rate=1e-2",
    "callbacks=quiet",
]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Overrides -> the directory of a finished run of them; each is trained once."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*overrides: str) -> Path:
        if overrides not in made:
            directory = tmp_path_factory.mktemp("run") / "run"
            train(compose(*TINY, *overrides, f"hydra.run.dir={directory}"))
            made[overrides] = directory
        return made[overrides]

    return run


@pytest.fixture
def settings() -> Callable[..., dict[str, Any]]:
    """settings("chat", "run=DIR") -> the door's resolved config."""

    def composed(command: str, *overrides: str) -> dict[str, Any]:
        from sft.config.compose import plain

        return plain(compose(*overrides, command=command))

    return composed
