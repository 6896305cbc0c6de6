"""When a run evaluates, saves and picks its best model: the arguments callbacks ask the trainer for, and conflicts.

None of this needs a model, so contradictions are found from the config alone. The callbacks themselves use the same
functions when the trainer is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sft.config.checks.figures import evaluated_sources, greater_is_better, objective_of
from sft.config.errors import UserError

Arguments = dict[str, Any]


def schedule(every: float | str | None, prefix: str, where: str) -> Arguments:
    """The TrainingArguments for "every so often".

    Args:
        every: a number of steps, a share of all steps below 1, "epoch", or None for "as the trainer node says".
        prefix: "eval" or "save".
        where: the config key, for the error.

    Returns:
        ``{"eval_strategy": "steps", "eval_steps": 100}`` and the like; {} for None.

    Raises:
        UserError: anything else.
    """
    if every is None:
        return {}
    if every == "epoch":
        return {f"{prefix}_strategy": "epoch"}
    if (
        isinstance(every, int | float)
        and not isinstance(every, bool)
        and every > 0
        and (every < 1 or every == int(every))
    ):
        return {f"{prefix}_strategy": "steps", f"{prefix}_steps": every if every < 1 else int(every)}
    raise UserError(
        f"{every!r} is not a number of steps",
        where=where,
        remedy="a whole number, a share below 1 of all steps, or epoch",
    )


def validation(every: float | str | None = "epoch", at_start: bool = False, delay: float = 0) -> Arguments:
    """The arguments that the callback `validation` asks for. Raises UserError."""
    wanted = schedule(every, "eval", "callbacks.validation.every")
    if at_start:
        wanted["eval_on_start"] = True
    if delay:
        wanted["eval_delay"] = delay
    return wanted


def checkpoint(
    every: float | str | None = None,
    limit: int | None = None,
    best_only: bool = False,
    objective: str | None = None,
    direction: str | None = None,
) -> Arguments:
    """The arguments that the callback `checkpoint` asks for. Raises UserError."""
    wanted = schedule(every, "save", "callbacks.checkpoint.every")
    if best_only:
        if every is not None:
            raise UserError(
                "best_only saves at the best evaluations, every at fixed steps",
                where="callbacks.checkpoint",
                remedy="leave one of them out; callbacks.validation.every sets how often there is an evaluation",
            )
        wanted = {"save_strategy": "best", **_metric(objective, direction)}
    if limit is not None:
        if limit < 1:
            raise UserError(
                f"at least one checkpoint must be kept, not {limit}",
                where="callbacks.checkpoint.limit",
                remedy="callbacks.checkpoint.limit=1, or trainer.save_strategy='no' for none",
            )
        wanted["save_total_limit"] = limit
    return wanted


def best_model(
    metric_for_best_model: str | None = None,
    greater_is_better: bool | None = None,
    objective: str | None = None,
    direction: str | None = None,
) -> Arguments:
    """The arguments that the callback `best_model` asks for."""
    own = metric_for_best_model not in (None, objective)
    metric = _metric(metric_for_best_model or objective, None if own else direction)
    if greater_is_better is not None:
        metric["greater_is_better"] = greater_is_better
    return {"load_best_model_at_end": True, **metric}


# The callbacks that ask for something, by their `_target_`; those marked true know the run's objective.
ARGUMENTS_OF: dict[str, tuple[Callable[..., Arguments], bool]] = {
    "sft.training.callbacks.validation.Validation": (validation, False),
    "sft.training.callbacks.checkpoint.Checkpoint": (checkpoint, True),
    "sft.training.callbacks.checkpoint.BestModel": (best_model, True),
}


def arguments_by_callback(callbacks: Mapping[str, Any], objective: str, direction: str) -> dict[str, Arguments]:
    """The arguments that each of sft's own callbacks asks for, read from its node. Raises UserError."""
    found: dict[str, Arguments] = {}
    for name, node in callbacks.items():
        target = str(node.get("_target_", "")) if isinstance(node, Mapping) else ""
        if target not in ARGUMENTS_OF:
            continue
        asks, knows = ARGUMENTS_OF[target]
        arguments = {key: value for key, value in node.items() if not key.startswith("_")}
        found[name] = asks(**arguments, **({"objective": objective, "direction": direction} if knows else {}))
    return found


def merged_arguments(
    asked: Mapping[str, Arguments], trainer: Mapping[str, Any], explicit: Iterable[str] = ()
) -> Arguments:
    """The arguments that all callbacks ask for, to be laid over the config's `trainer` node.

    A callback wins over a value in the trainer's YAML, since adding the callback is the more explicit choice.

    Args:
        asked: arguments by the callback's name in the config.
        trainer: the trainer node's values.
        explicit: its keys that the user set on the command line.

    Raises:
        UserError: two callbacks, or a callback and the command line, want different values; or the result is
            inconsistent (the best model without checkpoints at the evaluations).
    """
    found: Arguments = {}
    owner: dict[str, str] = {}
    for name, wanted in asked.items():
        for key, value in wanted.items():
            if key in found and found[key] != value:
                raise _disagreement(f"callbacks.{owner[key]}", found[key], f"callbacks.{name}", value, key)
            if key in set(explicit) and trainer.get(key) is not None and trainer[key] != value:
                raise _disagreement(f"trainer.{key}", trainer[key], f"callbacks.{name}", value, key)
            found[key], owner[key] = value, name
    _check_best({**trainer, **found})
    return found


def conflicting_callbacks(config: Mapping[str, Any], explicit: Iterable[str] = ()) -> Iterator[UserError]:
    """The error for callbacks that contradict each other or the command line, if there is one."""
    nodes, trainer = config.get("callbacks"), config.get("trainer")
    try:
        asked = arguments_by_callback(nodes or {}, *objective_of(config, bool(evaluated_sources(config))))
        merged_arguments(asked, trainer or {}, explicit)
    except UserError as error:
        yield error


def _metric(name: str | None, direction: str | None) -> Arguments:
    """The arguments for the deciding metric: better by its direction, else smaller for a loss or perplexity."""
    name = name if name and name.startswith("eval_") else f"eval_{name or 'loss'}"
    if name == "eval_train_loss":
        name = "eval_loss"  # the objective of a run without evaluations
    return {"metric_for_best_model": name, "greater_is_better": greater_is_better(name, direction)}


# The field of a callback that sets an argument of the trainer.
_FIELDS = {"save_total_limit": "limit", "eval_steps": "every", "save_steps": "every", "eval_delay": "delay"}


def _disagreement(one: str, first: Any, other: str, second: Any, key: str) -> UserError:
    field = _FIELDS.get(key)
    both = field and one.startswith("trainer.") and other in ("callbacks.checkpoint", "callbacks.validation")
    return UserError(
        f"{one} wants {key}={first}, {other} wants {key}={second}",
        where=other,
        remedy=f"{other}.{field}={first} in place of {one}" if both else "leave one of the two out",
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
