"""Trainer arguments required by callbacks."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import EarlyStoppingCallback, TrainingArguments

from sft.config.errors import UserError
from sft.training.callbacks.base import RunCallback, trainer_arguments
from sft.training.callbacks.checkpoint import BestModel, Checkpoint
from sft.training.callbacks.early_stopping import EarlyStopping
from sft.training.callbacks.generation_samples import GenerationSamples
from sft.training.callbacks.metrics_jsonl import MetricsJsonl
from sft.training.callbacks.validation import Validation


@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (Validation(every=50), {"eval_strategy": "steps", "eval_steps": 50}),
        (Validation(every=0.25), {"eval_strategy": "steps", "eval_steps": 0.25}),
        (
            Validation(every="epoch", at_start=True, delay=2),
            {"eval_strategy": "epoch", "eval_on_start": True, "eval_delay": 2},
        ),
        (Validation(every=None), {}),
        (Checkpoint(), {}),
        (Checkpoint(every=10, limit=3), {"save_strategy": "steps", "save_steps": 10, "save_total_limit": 3}),
        (
            Checkpoint(best_only=True),
            {"save_strategy": "best", "metric_for_best_model": "eval_loss", "greater_is_better": False},
        ),
        (
            BestModel(),
            {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False},
        ),
        (
            BestModel("token_accuracy"),
            {"load_best_model_at_end": True, "metric_for_best_model": "eval_token_accuracy", "greater_is_better": True},
        ),
        (MetricsJsonl(), {}),
    ],
)
def test_a_callbacks_trainer_arguments(callback: RunCallback, expected: dict[str, Any]) -> None:
    assert callback.arguments() == expected
    TrainingArguments(
        "x", report_to="none", use_cpu=True, **{"eval_strategy": "steps", "save_strategy": "steps", **expected}
    )


def test_the_objective_decides_which_model_is_best() -> None:
    callback = BestModel()
    callback.bind(None, objective="eval_names_exact_match", direction="maximize")
    assert callback.arguments()["metric_for_best_model"] == "eval_names_exact_match"
    assert callback.arguments()["greater_is_better"] is True
    other = BestModel("eval_loss")
    other.bind(None, objective="eval_names_exact_match", direction="maximize")
    assert other.arguments()["greater_is_better"] is False


@pytest.mark.parametrize(
    "make",
    [
        lambda: Validation(every=0).arguments(),
        lambda: Validation(every=1.5).arguments(),
        lambda: Validation(every="often").arguments(),
        lambda: Validation(every=True).arguments(),
        lambda: Checkpoint(limit=0).arguments(),
        lambda: Checkpoint(every=5, best_only=True).arguments(),
        lambda: EarlyStopping(early_stopping_patience=0),
        lambda: GenerationSamples(max_new_tokens=0),
    ],
)
def test_contradictory_settings_are_refused(make: Any) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value.where).startswith("callbacks.")
    assert caught.value.remedy


def test_a_callback_overrides_yaml_but_not_the_command_line() -> None:
    callbacks = {"validation": Validation(every=10), "plain": EarlyStoppingCallback()}
    trainer_node = {"eval_strategy": "epoch", "eval_steps": 50, "save_strategy": "epoch"}
    assert trainer_arguments(callbacks, trainer_node) == {"eval_strategy": "steps", "eval_steps": 10}
    assert trainer_arguments(callbacks, {"eval_steps": 10}, explicit={"eval_steps"})["eval_steps"] == 10
    with pytest.raises(
        UserError, match=r"trainer\.eval_steps wants eval_steps=50, callbacks\.validation wants eval_steps=10"
    ):
        trainer_arguments(callbacks, trainer_node, explicit={"eval_steps"})
    with pytest.raises(UserError, match=r"callbacks\.a wants eval_steps=10, callbacks\.b wants eval_steps=20"):
        trainer_arguments({"a": Validation(every=10), "b": Validation(every=20)}, {})


@pytest.mark.parametrize(
    ("trainer_node", "fine"),
    [
        ({"eval_strategy": "epoch", "save_strategy": "epoch"}, True),
        ({"eval_strategy": "steps", "eval_steps": 10, "save_strategy": "steps", "save_steps": 20}, True),
        ({"eval_strategy": "epoch", "save_strategy": "best"}, True),
        ({"eval_strategy": "steps", "eval_steps": 0.1, "save_strategy": "steps", "save_steps": 0.3}, True),
        ({"eval_strategy": "steps", "eval_steps": 10, "save_strategy": "steps", "save_steps": 15}, False),
        ({"eval_strategy": "steps", "eval_steps": 10, "save_strategy": "epoch"}, False),
        ({"eval_strategy": False, "save_strategy": "epoch"}, False),
        ({}, False),
    ],
)
def test_the_best_model_needs_a_checkpoint_at_its_evaluation(trainer_node: dict[str, Any], fine: bool) -> None:
    if fine:
        assert trainer_arguments({"best_model": BestModel()}, trainer_node)["load_best_model_at_end"]
    else:
        with pytest.raises(UserError, match="best model"):
            trainer_arguments({"best_model": BestModel()}, trainer_node)
