"""What our callbacks have beyond transformers': the run directory, arguments they ask for, and an end that always comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from sft.config.errors import UserError
from sft.run import log as run_log
from sft.run.directory import RunDirectory

log = logging.getLogger(__name__)


class RunCallback(TrainerCallback):
    """A callback that may use the run directory. It stays a TrainerCallback: unbound it works where that makes sense.

    Attributes:
        run: the run directory, None until bound.
        tokenizer: the run's tokenizer.
        template: the bound chat template (``render``, ``stop_tokens``).
        examples: a few conversations of the evaluation data.
        objective: the metric that decides which model is better, such as "eval_loss".
        direction: "minimize" or "maximize".
        rows_of_step: gives the rows of the step being made, as text.
    """

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

    A callback wins over a value that merely stands in a trainer's YAML, for who adds the callback means it.

    Args:
        callbacks: by their names in the config.
        trainer: the trainer node's values.
        explicit: keys of it that the user set himself (on the command line).

    Returns:
        the arguments that the callbacks set, {} for none.

    Raises:
        UserError: two callbacks, or a callback and the command line, want different values; or what results cannot
            work together (the best model without checkpoints at the evaluations).
    """
    asked: dict[str, Any] = {}
    owner: dict[str, str] = {}
    for name, callback in callbacks.items():
        wanted = callback.arguments() if isinstance(callback, RunCallback) else {}
        for key, value in wanted.items():
            if key in asked and asked[key] != value:
                raise _disagreement(f"callbacks.{owner[key]}", asked[key], f"callbacks.{name}", value, key)
            if key in set(explicit) and trainer.get(key) is not None and trainer[key] != value:
                raise _disagreement(f"trainer.{key}", trainer[key], f"callbacks.{name}", value, key)
            asked[key], owner[key] = value, name
    _check_best({**trainer, **asked})
    return asked


def _disagreement(one: str, first: Any, other: str, second: Any, key: str) -> UserError:
    return UserError(
        f"{one} wants {key}={first}, {other} wants {key}={second}", where=other, remedy="leave one of the two out"
    )


def _check_best(merged: Mapping[str, Any]) -> None:
    """The best model can only be loaded at the end if there is a checkpoint wherever it was evaluated."""
    if not merged.get("load_best_model_at_end"):
        return
    evaluation, saving = _strategy(merged.get("eval_strategy", "no")), _strategy(merged.get("save_strategy", "steps"))
    if evaluation == "no":
        raise UserError(
            "the best model is chosen by evaluations, and this run makes none",
            where="callbacks.best_model",
            remedy="callbacks.validation.every=epoch, or trainer.eval_strategy=epoch",
        )
    if saving == "best":
        return
    steps = merged.get("eval_steps") or merged.get("logging_steps") or 500, merged.get("save_steps") or 500
    if evaluation == saving and (evaluation != "steps" or _multiple(steps[1], steps[0])):
        return
    shown = {"steps": "every {} steps"}
    raise UserError(
        f"the best model needs a checkpoint at its evaluation, but the run evaluates "
        f"{shown.get(evaluation, 'by {}').format(steps[0] if evaluation == 'steps' else evaluation)} and saves "
        f"{shown.get(saving, 'by {}').format(steps[1] if saving == 'steps' else saving)}",
        where="callbacks.best_model",
        remedy="save as often as you evaluate: add the callbacks validation and checkpoint with the same `every`",
    )


def _strategy(value: Any) -> str:
    if value is False or value is None:  # YAML reads an unquoted `no` as False
        return "no"
    return str(getattr(value, "value", value)).lower()


def _multiple(save: float, evaluate: float) -> bool:
    return abs(save / evaluate - round(save / evaluate)) < 1e-6 and save >= evaluate
