"""Progress display: a live bar on a terminal, plain lines anywhere else. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments

from sft.run import memory
from sft.run.log_lines import job_prefix
from sft.training.callbacks.base import RunCallback

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Display(RunCallback):
    """Shows step, loss, tokens per second, time left and memory, instead of transformers' bars and printed dicts.

    Args:
        seconds: minimum time between two plain lines; evaluations, the first and the last step are always shown.
        live: draw a live bar; None draws one if stderr is a terminal.
    """

    weight_neutral = ("*",)

    def __init__(self, seconds: float = 10.0, live: bool | None = None) -> None:
        self.seconds, self.live = seconds, live
        self._bar: _Bar | None = None
        self._clock = _Clock()
        self._shown = float("-inf")
        self._evaluated = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        self.close()
        if not state.is_world_process_zero:
            return
        self._clock = _Clock(state.global_step, state.num_input_tokens_seen)
        self._shown = float("-inf")
        if (self.live if self.live is not None else sys.stderr.isatty()) and not job_prefix():
            self._bar = _Bar(state.global_step, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step, self._clock.left(state))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the metrics, beside the bar or as a line."""
        if not logs or not state.is_world_process_zero:
            return
        if "loss" in logs:
            parts = self._parts(state, logs)
            if self._bar is not None:
                self._bar.describe(parts)
            elif self._due(state):
                _print(
                    "  ".join(
                        filter(None, [f"step {state.global_step}/{state.max_steps}", *parts, self._clock.left(state)])
                    )
                )
        elif evaluation := _evaluation(logs):
            _print(f"step {state.global_step}/{state.max_steps}  evaluation: {evaluation}")

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Show the progress of an evaluation beside the bar."""
        self._evaluated += 1
        if self._bar is not None:
            self._bar.describe([f"evaluating, batch {self._evaluated}"])

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Reset the evaluation's progress."""
        self._evaluated = 0

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the finished bar on the terminal."""
        if self._bar is not None:
            self._bar.update(state.global_step, "")
        self.close()

    def close(self) -> None:
        """Restore the terminal."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()

    def _due(self, state: TrainerState) -> bool:
        now = time.monotonic()
        if now - self._shown < self.seconds and state.global_step < state.max_steps:
            return False
        self._shown = now
        return True

    def _parts(self, state: TrainerState, logs: dict[str, float]) -> list[str]:
        parts = [f"loss {logs['loss']:.4f}"]
        speed = logs.get("tokens_per_second") or logs.get("train_tokens_per_second") or self._clock.tokens(state)
        if speed:
            parts.append(f"{speed:,.0f} tokens/s")
        taken = memory.device_bytes() or memory.process_bytes()
        return [*parts, f"{taken / 2**30:.1f} GiB"]


class _Clock:
    """Speed since training began or was resumed."""

    def __init__(self, step: int = 0, tokens: int = 0, now: Callable[[], float] = time.monotonic) -> None:
        self.step, self.seen, self.now = step, tokens, now
        self.began = now()

    def left(self, state: TrainerState) -> str:
        """The estimated time to the last step, "" before the first step and after the last."""
        made = state.global_step - self.step
        ahead = state.max_steps - state.global_step
        if made <= 0 or ahead <= 0:
            return ""
        seconds = (self.now() - self.began) / made * ahead
        return f"{duration(seconds)} left"

    def tokens(self, state: TrainerState) -> float:
        """Tokens per second, 0 if the trainer does not count them."""
        passed = self.now() - self.began
        return (state.num_input_tokens_seen - self.seen) / passed if passed > 0 else 0.0


class _Bar:
    """A rich progress bar on stderr. It replaces sys.stderr while it is shown, so that log lines are drawn above it."""

    def __init__(self, step: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.progress: Progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=Console(file=sys.stderr, stderr=True),
            redirect_stdout=False,  # stdout is for the command's output
            refresh_per_second=4,
            expand=True,
        )
        self.task: TaskID = self.progress.add_task("", total=total or None, completed=step, figures="", left="")
        self.progress.start()

    def update(self, step: int, left: str) -> None:
        self.progress.update(self.task, completed=step, left=left)

    def describe(self, parts: list[str]) -> None:
        self.progress.update(self.task, figures="  ".join(parts))

    def close(self) -> None:
        self.progress.stop()


def quiet_trainer(trainer: Trainer) -> None:
    """Remove transformers' progress callbacks: one prints dicts to stdout, the other draws a second bar."""
    for kind in (PrinterCallback, ProgressCallback):
        while trainer.pop_callback(kind) is not None:
            pass


def duration(seconds: float) -> str:
    """``2 h 05 min``, ``3 min 20 s``, ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _evaluation(logs: dict[str, float]) -> str:
    """The metrics of an evaluation without those of its speed."""
    dull = ("runtime", "per_second", "model_preparation_time")
    shown = {key.removeprefix("eval_"): value for key, value in logs.items() if key.startswith("eval_")}
    return "  ".join(
        f"{key} {value:.4f}" for key, value in shown.items() if not key.endswith(dull) and isinstance(value, float)
    )


def _print(line: str) -> None:
    sys.stderr.write(job_prefix() + line + "\n")
    sys.stderr.flush()
