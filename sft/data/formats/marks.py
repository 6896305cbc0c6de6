"""Marks that say whether a turn or a row is trained, under the names that other trainers use.

`train`; `trainable` (verl), `training` (axolotl), `loss` (ms-swift), `loss_mask` (verl, LLaMA-Factory),
`output_with_loss` (XTuner); `weight` (OpenAI), `loss_weight`, `loss_scale`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sft.data.formats.errors import RowError
from sft.data.formats.values import EMPTY
from sft.data.report.notes import note

SWITCHES = ("train", "trainable", "training", "loss", "loss_mask", "output_with_loss")
WEIGHTS = ("weight", "loss_weight", "loss_scale")
MARKS = frozenset((*SWITCHES, *WEIGHTS))
_IN_PART = ("train_detail", "training_detail")  # axolotl: which characters of a turn are trained
_WORDS = {"true": True, "1": True, "false": False, "0": False}  # the spellings of tables


def message_marks(raw: Mapping[str, Any], role: str, where: str) -> dict[str, Any]:
    """The meaning of a message's marks: {} without marks, `weight` where it is the only one, else `train`.

    Raises:
        RowError: a value that is neither yes nor no, marks that contradict each other, a mark on a part of a turn.
    """
    said = {name: _decided(raw[name], name, where) for name in raw if name in MARKS and raw[name] not in EMPTY}
    for name in _IN_PART:
        if any(isinstance(part, Mapping) and part.get("train") is False for part in raw.get(name) or ()):
            raise RowError("a part of a turn is marked", f" by {name} in {where}; only whole turns can be left out")
    if not said:
        return {}
    trained = _agreed(said, where)
    if trained and role != "assistant":
        note("unfollowed_marks", f"{next(iter(said))} of a {role} message")
    marks: dict[str, Any] = {}
    if "weight" in said:
        marks["weight"] = int(trained)
    if said.keys() - {"weight"}:
        marks["train"] = trained
    return marks


def check_row_marks(row: Mapping[str, Any]) -> None:
    """Raise RowError (left out on purpose) for a row whose own marks exclude it from training."""
    said = {name: row[name] for name in row if is_row_mark(name, row[name])}
    said = {name: _yes(value) for name, value in said.items() if not isinstance(value, list)}
    if said and not _agreed(said, "the row"):
        raise RowError("left out by its mark", f": {', '.join(said)}", broken=False)


def mark_messages(messages: Sequence[dict[str, Any]], row: Mapping[str, Any]) -> None:
    """Apply a row's list of marks, one for each message (LLaMA-Factory's `loss_mask`).

    Raises:
        RowError: a list of another length, or against a message's own mark.
    """
    for name in row:
        values = row[name]
        if not isinstance(values, list) or not is_row_mark(name, values):
            continue
        if len(values) != len(messages):
            raise RowError(
                f"{name} does not fit the messages", f": {len(values)} values, {len(messages)} messages; one for each"
            )
        for number, (message, value) in enumerate(zip(messages, values, strict=True), 1):
            if message["role"] != "assistant":
                continue
            if ("train" in message or "weight" in message) and is_trained(message) != _yes(value):
                raise RowError(f"{name} contradicts the message's own mark", f" in message {number}")
            message["train"] = _yes(value)


def is_row_mark(name: str, value: Any) -> bool:
    """Whether a column of this name marks rows; columns like `loss` may hold numbers instead.

    A mark is true or false, 0 or 1, or a list of those; 0.0 and 1.0 where the name is that of a weight.
    """
    if name not in MARKS:
        return False
    if isinstance(value, list):
        return bool(value) and all(_yes(item) is not None for item in value)
    return _yes(value) is not None and (name in WEIGHTS or not isinstance(value, float))


def is_trained(message: Mapping[str, Any]) -> bool:
    """Whether an assistant message is trained according to its own marks."""
    return bool(message.get("train", True)) and bool(message.get("weight", 1))


def _decided(value: Any, name: str, where: str) -> bool:
    decided = _yes(value)
    if decided is None:
        raise RowError(
            f"{name} is not {'0 or 1' if name in WEIGHTS else 'true or false'}", f" but {value!r} in {where}"
        )
    return decided


def _yes(value: Any) -> bool | None:
    """Yes or no; None for a value that is neither."""
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def _agreed(said: Mapping[str, bool | None], where: str) -> bool:
    if len(set(said.values())) > 1:
        yes, no = (next(name for name in said if said[name] is value) for value in (True, False))
        first, second = sorted((yes, no), key=list(said).index)
        raise RowError(f"{first} and {second} contradict each other", f" in {where}")
    return bool(next(iter(said.values())))
