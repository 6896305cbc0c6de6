"""Early stopping, and the state of callbacks in checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from transformers import TrainerControl

from sft.config.errors import UserError
from sft.run.directory import RunDirectory
from sft.training.callbacks import state as callback_state
from sft.training.callbacks.base import bind_all
from sft.training.callbacks.early_stopping import EarlyStopping
from sft.training.callbacks.loss_logger import LossLogger
from sft.training.callbacks.memory import MemoryMonitor
from sft.training.callbacks.metrics_jsonl import MetricsJsonl


@pytest.fixture
def stops_after(event) -> Callable[..., int | None]:
    """The number of evaluations after which training stops, None if it goes on."""

    def count(callback: EarlyStopping, values: list[float], name: str = "eval_loss") -> int | None:
        for number, value in enumerate(values, start=1):
            if event("on_log", callback, number, logs={name: value}).should_training_stop:
                return number
        return None

    return count


def test_it_stops_without_improvement(stops_after) -> None:
    assert stops_after(EarlyStopping(2), [3.0, 2.0, 2.1, 1.9, 1.9, 1.95, 1.0]) == 6
    assert stops_after(EarlyStopping(2), [3.0, 2.0, 1.0]) is None
    assert stops_after(EarlyStopping(2, early_stopping_threshold=0.5), [3.0, 2.8, 2.7]) == 3
    assert stops_after(EarlyStopping(2), [3.0, float("nan"), float("nan")]) == 3


def test_higher_accuracies_are_better(stops_after) -> None:
    assert stops_after(EarlyStopping(1, metric="token_accuracy"), [0.1, 0.2, 0.3], "eval_token_accuracy") is None
    assert stops_after(EarlyStopping(1, metric="token_accuracy"), [0.3, 0.2], "eval_token_accuracy") == 2
    bound = EarlyStopping(1)
    bound.bind(None, objective="eval_score", direction="minimize")
    assert stops_after(bound, [0.3, 0.2], "eval_score") is None


def test_other_evaluation_sets_do_not_count(stops_after) -> None:
    callback = EarlyStopping(1)
    assert stops_after(callback, [1.0, 2.0, 3.0], "eval_names_loss") is None
    assert callback.waited == 0


def test_one_evaluation_logged_twice_counts_once(event) -> None:
    callback = EarlyStopping(2)
    for step in (1, 2, 2, 2):
        event("on_log", callback, step, logs={"eval_loss": 1.0})
    assert callback.waited == 1


def test_it_stops_real_training_with_several_evaluation_sets(trainer) -> None:
    callback = EarlyStopping(1, metric="a_loss", early_stopping_threshold=100.0)
    built = trainer([callback], ["a", "b"], eval_strategy="steps", eval_steps=2, max_steps=20)
    built.train()
    assert built.state.global_step == 4


def test_runs_without_evaluation_are_refused_and_a_missing_metric_is_named(
    trainer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match="makes none"):
        trainer([EarlyStopping(1)]).train()
    trainer([EarlyStopping(1, metric="typo")], True, eval_strategy="steps", eval_steps=1, max_steps=1).train()
    assert "early stopping monitored eval_typo, which no evaluation reported" in caplog.text


def test_states_are_restored_into_the_same_objects(event, stops_after, run: RunDirectory) -> None:
    first, second, memory, spikes = EarlyStopping(2), EarlyStopping(3, metric="other"), MemoryMonitor(), LossLogger()
    stops_after(first, [1.0, 2.0])
    stops_after(second, [5.0], "eval_other")
    memory.peak_bytes = 2**50
    event("on_log", spikes, 1, logs={"loss": 1.0})
    stored = json.loads(
        json.dumps(callback_state.collect([first, MetricsJsonl(), memory, second, spikes, TrainerControl()]))
    )

    new = [EarlyStopping(2), MemoryMonitor(), EarlyStopping(7, metric="other"), LossLogger(), TrainerControl()]
    bind_all(new, run)  # type: ignore[arg-type]
    callback_state.restore(new, stored)
    one, monitor, two, losses, _ = new
    assert isinstance(one, EarlyStopping)
    assert isinstance(two, EarlyStopping)
    assert isinstance(monitor, MemoryMonitor)
    assert isinstance(losses, LossLogger)
    assert (one.best, one.waited, one.last_step, one.run) == (1.0, 1, 2, run)
    assert (two.best, two.early_stopping_patience) == (5.0, 7)  # settings are the config's
    assert monitor.update() == 2**50
    assert losses.recent == [1.0]


def test_a_state_without_a_callback_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    callback_state.restore([], callback_state.collect([EarlyStopping(2)]))
    assert "1 states of EarlyStopping, this run has 0" in caplog.text
