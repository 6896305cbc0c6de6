"""The state that callbacks keep in a checkpoint, and its restoration into the same objects.

transformers restores a callback by building a new one, which has lost its run directory and its position among the
others; and of two callbacks of one class it restores only the first one's state. Here the objects stay and only their
attributes are set.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from transformers.trainer_callback import ExportableState

log = logging.getLogger(__name__)


def collect(callbacks: Iterable[object]) -> dict[str, Any]:
    """The current states as in TrainerState.stateful_callbacks: by class name, a list if there are several of a
    class."""
    found: dict[str, list[dict[str, Any]]] = {}
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            found.setdefault(type(callback).__name__, []).append(callback.state())
    return {name: states[0] if len(states) == 1 else states for name, states in found.items()}


def restore(callbacks: Iterable[object], stored: Mapping[str, Any]) -> None:
    """Set the attributes that :func:`collect` stored, in place and in the callbacks' order.

    Settings (a state's "args") stay as configured. States without a counterpart are named in the log.
    """
    present: dict[str, list[object]] = {}
    for callback in callbacks:
        if isinstance(callback, ExportableState):
            present.setdefault(type(callback).__name__, []).append(callback)
    for name, states in stored.items():
        states = states if isinstance(states, list) else [states]
        targets = present.get(name, [])
        if len(targets) != len(states):
            log.warning(
                "the checkpoint has %d states of %s, this run has %d such callbacks", len(states), name, len(targets)
            )
        for target, state in zip(targets, states, strict=False):
            for attribute, value in state.get("attributes", {}).items():
                setattr(target, attribute, value)


def evaluated_at(state: Any, step: int) -> bool:
    """Whether a trainer's state contains the evaluation of a step."""
    return any(line.get("step") == step and any(key.startswith("eval_") for key in line) for line in state.log_history)
