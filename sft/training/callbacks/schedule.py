"""Reading `every: 100`, `every: 0.1` and `every: epoch`."""

from __future__ import annotations

from typing import Any

from sft.config.errors import UserError


def schedule(every: float | str | None, prefix: str, where: str) -> dict[str, Any]:
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
        f"{every!r} is no number of steps", where=where, remedy="a whole number, a share below 1 of all steps, or epoch"
    )
