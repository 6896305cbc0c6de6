"""What our callbacks have beyond transformers': the run directory, arguments they ask for, and an end that always comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from transformers import TrainerCallback

from sft.config.checks.schedules import together
from sft.run import log as run_log
from sft.run.directory import RunDirectory

log = logging.getLogger(__name__)


class RunCallback(TrainerCallback):
    """A callback that may use the run directory. It stays a TrainerCallback: unbound it works where that makes sense.

    Attributes:
        run: the run directory, None until bound.
        tokenizer: the run's tokenizer.
        template: the bound chat template (``render``, ``stop_tokens``).
        examples: a few conversations of the evaluation data, where a callback of the config `wants_examples`.
        objective: the metric that decides which model is better, such as "eval_loss".
        direction: "minimize" or "maximize".
        rows_of_step: gives the rows of the step being made, as text.

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
        """Give the callback its run directory and what else it may want; called once before training.

        Args:
            run: the run directory.
            context: tokenizer, template, examples, objective, direction, rows_of_step. Others are kept as attributes too.
        """
        self.run = run
        for name, value in context.items():
            setattr(self, name, value)

    def arguments(self) -> dict[str, Any]:
        """The TrainingArguments this callback needs set, by their own names; asked before they are built."""
        return {}

    def close(self) -> None:
        """Let go of what is open (a display); called when training ends, well or not. May be called twice."""


def bind_all(callbacks: Iterable[TrainerCallback], run: RunDirectory | None, **context: Any) -> None:
    """Bind those callbacks that can be bound; transformers' own and a user's plain ones are left alone."""
    run_log.adopt()  # all libraries are imported by now: their messages belong in train.log
    for callback in callbacks:
        if isinstance(callback, RunCallback):
            callback.bind(run, **context)


@contextmanager
def closing(callbacks: Iterable[TrainerCallback]) -> Iterator[None]:
    """Close the callbacks when the block ends, also by an error or an interrupt."""
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
    """What the callbacks ask of TrainingArguments, to be laid over the config's `trainer` node.

    See `sft.config.checks.schedules.together`.
    """
    asked = {name: each.arguments() for name, each in callbacks.items() if isinstance(each, RunCallback)}
    return together(asked, trainer, explicit)
