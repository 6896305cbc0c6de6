"""Every option of callbacks/ and tracker/ composes and builds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from sft.config.build import build
from sft.run.trackers.base import Tracker
from sft.training.callbacks.base import RunCallback, trainer_arguments

CONF = Path(__file__).resolve().parents[3] / "conf"


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(group: str, option: str, *overrides: str) -> Any:
    return OmegaConf.to_container(compose(f"{group}/{option}", list(overrides)), resolve=True)[group]  # type: ignore[index]


@pytest.mark.parametrize("option", options("callbacks"))
def test_each_set_of_callbacks_builds(option: str) -> None:
    found = composed("callbacks", option)
    if option == "none":
        assert found is None
        return
    built = {name: build(node, where=f"callbacks.{name}") for name, node in found.items()}
    assert all(isinstance(callback, RunCallback) for callback in built.values())
    trainer_arguments(built, {"eval_strategy": "epoch", "save_strategy": "epoch"})


def test_the_default_set_in_its_order() -> None:
    assert list(composed("callbacks", "default")) == ["memory_monitor", "loss_logger", "metrics_jsonl", "display"]


def test_one_field_of_a_callback_can_be_set_and_a_callback_removed() -> None:
    found = composed("callbacks", "full", "callbacks.validation.every=25", "callbacks.display=null")
    assert found["checkpoint"]["every"] == 25
    assert found["display"] is None
    built = {name: build(node, where=name) for name, node in found.items() if node}
    assert trainer_arguments(built, {"eval_strategy": "epoch", "save_strategy": "epoch"}) == {
        "eval_strategy": "steps",
        "eval_steps": 25,
        "save_strategy": "steps",
        "save_steps": 25,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }


@pytest.mark.parametrize("option", options("tracker"))
def test_each_tracker_builds(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "WANDB_MODE",
        "WANDB_PROJECT",
        "WANDB_ENTITY",
        "WANDB_RUN_GROUP",
        "WANDB_API_KEY",
        "MLFLOW_EXPERIMENT_NAME",
    ):
        monkeypatch.delenv(name, raising=False)
    found = composed("tracker", option)
    assert (found is None) is (option == "none")
    if found is not None:
        assert isinstance(build(found, where="tracker"), Tracker)


def test_the_command_line_overrides_the_environment_and_that_overrides_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert composed("tracker", "wandb")["mode"] == "offline"
    assert composed("tracker", "wandb", "tracker.mode=disabled")["mode"] == "disabled"
    monkeypatch.delenv("WANDB_MODE")
    assert composed("tracker", "wandb")["mode"] == "online"
    assert composed("tracker", "wandb")["entity"] is None
