"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from transformers import TrainerCallback, TrainerState

from sft.training.callbacks.base import closing
from sft.training.callbacks.display import Display, _Clock, duration


def test_plain_lines_are_printed_without_a_terminal(trainer, capsys: pytest.CaptureFixture) -> None:
    trainer([Display(seconds=0)], True, eval_strategy="steps", eval_steps=3).train()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("step 1/6  loss ")
    assert lines[0].endswith(" left")
    assert " GiB" in lines[0]
    assert lines[3].startswith("step 3/6  evaluation: loss ")
    assert "runtime" not in err
    assert "\r" not in err


def test_plain_lines_are_few_when_steps_are_fast(trainer, capsys: pytest.CaptureFixture) -> None:
    trainer([Display(seconds=1000)]).train()
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["1/6", "6/6"]


def test_tokens_per_second_and_time_left() -> None:
    moment = [0.0]
    clock = _Clock(step=10, tokens=1000, now=lambda: moment[0])
    state = TrainerState(global_step=10, max_steps=110, num_input_tokens_seen=1000)
    assert clock.left(state) == ""
    moment[0], state.global_step, state.num_input_tokens_seen = 20.0, 30, 5000
    assert clock.left(state) == "1 min 20 s left"
    assert clock.tokens(state) == 200.0
    assert [duration(s) for s in (0.4, 59.6, 3599, 3600, 90000)] == [
        "0 s",
        "1 min 00 s",
        "59 min 59 s",
        "1 h 00 min",
        "25 h 00 min",
    ]


def test_a_live_bar_restores_the_terminal(trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    display = Display(live=True)

    class Break(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert sys.stderr is not screen  # the bar stands in, so that others' lines go above it
            if state.global_step == 4:
                raise KeyboardInterrupt

    callbacks = [display, Break()]
    with pytest.raises(KeyboardInterrupt), closing(callbacks):
        trainer(callbacks).train()
    assert sys.stderr is screen
    assert "4/6" in screen.getvalue()
    assert "loss" in screen.getvalue()
    assert "\x1b[?25h" in screen.getvalue()  # the cursor is shown again
