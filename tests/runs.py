"""Runs of a tiny model on a few tickets, a second or two each, and finished ones that the tests of a process share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
    "callbacks=quiet",
]
_trained: dict[tuple[str, ...], Path] = {}


@pytest.fixture(scope="session")
def run_in() -> Callable[..., Any]:
    """A directory and overrides -> a finished run's Result."""
    from sft.api import compose, train

    def start(directory: Path, *overrides: str, **kwargs: Any) -> Any:
        return train(compose(*TINY, f"hydra.run.dir={directory}", *overrides), **kwargs)

    return start


@pytest.fixture(scope="session")
def trained(run_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Overrides -> the directory of a finished run of them; each is trained once."""

    def run(*overrides: str) -> Path:
        if overrides not in _trained:
            directory = tmp_path_factory.mktemp("run") / "run"
            run_in(directory, "trainer.learning_rate=1e-2", *overrides)
            _trained[overrides] = directory
        return _trained[overrides]

    return run


@pytest.fixture
def settings() -> Callable[..., dict[str, Any]]:
    """settings("chat", "run=DIR") -> the door's resolved config."""

    def composed(command: str, *overrides: str) -> dict[str, Any]:
        from sft.api import compose
        from sft.config.compose import plain

        return plain(compose(*overrides, command=command))

    return composed
