"""What our callbacks add to transformers': the run directory, required training arguments, and guaranteed cleanup."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from transformers import TrainerCallback

from sft.config.checks.schedules import merged_arguments
from sft.run import log as run_log
from sft.run.directory import RunDirectory

log = logging.getLogger(__name__)


class RunCallback(TrainerCallback):
    """A callback that may use the run directory. As a TrainerCallback it also works unbound, where that makes sense.

    Attributes:
        run: the run directory, None until bound.
        tokenizer: the run's tokenizer.
        template: the bound chat template (``render``, ``stop_tokens``).
        examples: a few conversations of the evaluation data, where a callback of the config `wants_examples`.
        objective: the metric that decides which model is better, such as "eval_loss".
        direction: "minimize" or "maximize".
        rows_of_step: returns the rows of the current step as text.

    What the checks of a config want to know of a class is read from its source, so these are literals:

        role: what it does for the run as a whole: it has the run evaluate, saves checkpoints, stops it early or loads
            the best model at its end; None: nothing of it.
        figure_argument: its argument that names the figure it goes by; null there means the run's objective.
        wants_examples: whether it looks at `examples`.
        weight_neutral: its arguments with no effect on the weights; "*": all, and the callback itself.
    """

    role: ClassVar[Literal["evaluates", "saves", "stops_early", "loads_best"] | None] = None
    figure_argument: ClassVar[str | None] = None
    wants_examples: ClassVar[bool] = False
    weight_neutral: ClassVar[tuple[str, ...]] = ()

    run: RunDirectory | None = None
    tokenizer: Any = None
    template: Any = None
    examples: list[dict[str, Any]] | None = None
    objective: str | None = None
    direction: str | None = None
    rows_of_step: Callable[[], str] | None = None

    def bind(self, run: RunDirectory | None, **context: Any) -> None:
        """Give the callback its run directory and other context; called once before training.

        Args:
            run: the run directory.
            context: tokenizer, template, examples, objective, direction, rows_of_step. Any others become attributes
                too.
        """
        self.run = run
        for name, value in context.items():
            setattr(self, name, value)

    def arguments(self) -> dict[str, Any]:
        """TrainingArguments required by this callback, by name; read before the arguments are built."""
        return {}

    def close(self) -> None:
        """Close open resources (a display); called when training ends, successfully or not. May be called twice."""


def bind_all(callbacks: Iterable[TrainerCallback], run: RunDirectory | None, **context: Any) -> None:
    """Bind the callbacks that can be bound; transformers' own and a user's plain ones are skipped."""
    run_log.adopt()  # all libraries are imported by now: send their messages to train.log
    for callback in callbacks:
        if isinstance(callback, RunCallback):
            callback.bind(run, **context)


@contextmanager
def closing(callbacks: Iterable[TrainerCallback]) -> Iterator[None]:
    """Close the callbacks when the block ends, also after an error or an interrupt."""
    callbacks = list(callbacks)
    try:
        yield
    finally:
        for callback in callbacks:
            if isinstance(callback, RunCallback):
                callback.close()


def trainer_arguments(
    callbacks: Mapping[str, TrainerCallback], trainer: Mapping[str, Any], explicit: Iterable[str] = ()
) -> dict[str, Any]:
    """TrainingArguments required by the callbacks, to be merged over the config's `trainer` node.

    See `sft.config.checks.schedules.merged_arguments`.
    """
    asked = {name: each.arguments() for name, each in callbacks.items() if isinstance(each, RunCallback)}
    return merged_arguments(asked, trainer, explicit)
