"""The progress display of a fused sweep: a live table on a terminal, occasional lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sft.training.callbacks.display import duration

if TYPE_CHECKING:
    from rich.live import Live

LINES, REDRAW = 10.0, 0.5  # seconds between two lines, and between two drawings of the table


class Training(Protocol):
    """A training job: its number, and its trainer once it exists."""

    number: int
    trainer: Any


class Table:
    """Shows the jobs of a group, as a context manager.

    Args:
        total: number of jobs.
        live: draw a table; None draws one if stderr is a terminal.
    """

    def __init__(self, total: int, live: bool | None = None) -> None:
        self.total, self.ended, self.tokens = total, 0, 0
        self.live = sys.stderr.isatty() if live is None else live
        self.began: float | None = None
        self._shown = 0.0
        self._drawing: Live | None = None

    def __enter__(self) -> Table:
        if self.live:
            from rich.console import Console
            from rich.live import Live

            self._drawing = Live(
                console=Console(file=sys.stderr, stderr=True), redirect_stdout=False, auto_refresh=False
            )
            self._drawing.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawing is not None:
            self._drawing.stop()

    def computed(self, tokens: int, training: Sequence[Training]) -> None:
        """Count a finished pass of this many tokens."""
        now = time.monotonic()
        if self.began is None:
            self.began = self._shown = now
            return  # the first pass warms up
        self.tokens += tokens
        if now - self._shown < (REDRAW if self._drawing is not None else LINES):
            return
        self._shown = now
        if self._drawing is not None:
            self._drawing.update(self._table(training), refresh=True)
        else:
            sys.stderr.write(self._line(training) + "\n")

    def speed(self) -> float:
        """Tokens per second of all jobs together."""
        passed = time.monotonic() - self.began if self.began is not None else 0.0
        return self.tokens / passed if passed > 0 else 0.0

    def _line(self, training: Sequence[Training]) -> str:
        steps = ", ".join(
            f"{each.number}: {each.trainer.state.global_step}/{each.trainer.state.max_steps}"
            for each in training
            if each.trainer is not None
        )
        waiting = self.total - self.ended - len(training)
        return (
            f"{self.ended} of {self.total} jobs ended, {waiting} wait; {self.speed():,.0f} tokens/s together; {steps}"
        )

    def _table(self, training: Sequence[Training]) -> Any:
        from rich.table import Table as RichTable

        waiting = self.total - self.ended - len(training)
        title = f"{self.ended} of {self.total} jobs ended, {waiting} wait; {self.speed():,.0f} tokens/s together"
        table = RichTable(title=title, title_justify="left")
        for name in ("job", "step", "loss", "evaluation", "tokens/s", "left"):
            table.add_column(name, justify="right")
        for each in training:
            table.add_row(*self._row(each))
        return table

    def _row(self, each: Training) -> list[str]:
        if each.trainer is None:
            return [str(each.number), "starting", "", "", "", ""]
        state, progress = each.trainer.state, each.trainer.progress
        speed = progress.tokens_per_second
        passed = time.monotonic() - (self.began or time.monotonic())
        ahead = (state.max_steps - state.global_step) * passed / state.global_step if state.global_step else None
        return [
            str(each.number),
            f"{state.global_step}/{state.max_steps}",
            _last(state.log_history, "loss"),
            _last(state.log_history, "eval_loss"),
            f"{speed:,.0f}" if speed else "",
            duration(ahead) if ahead else "",
        ]


def _last(history: Sequence[dict[str, Any]], key: str) -> str:
    """The last logged value of a metric."""
    return next((f"{line[key]:.4f}" for line in reversed(history) if key in line), "")
