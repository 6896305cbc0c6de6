"""Rows that were lost on the way: how many may be, and an error that lists them where they are more."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sft.config.errors import UserError, raise_all
from sft.data.documents import Documents
from sft.data.gate import Gate
from sft.data.report import IN_EVALUATION, ranges

if TYPE_CHECKING:
    from sft.data.load import Failed
    from sft.data.pipeline import Part
    from sft.data.spec import Dataset

log = logging.getLogger(__name__)

ROWS_LISTED = 20  # broken rows in an error; the rest are counted


def refuse_losses(parts: Sequence[Part], dataset: Dataset) -> None:
    """Raise for every source that lost more rows than it may."""
    errors = []
    for part in parts:
        broken = [each for each in part.loaded.failed if each.broken]
        if len(broken) > dataset.max_dropped * part.loaded.read + 1e-9:
            errors.append(_too_many_broken(part, broken, dataset))
        long = part.fitted.dropped if dataset.on_long == "error" else {}
        errors += [_too_long(part, documents, reason, dataset) for reason, documents in long.items()]
    raise_all(errors)
    for part in parts:
        broken = [each for each in part.loaded.failed if each.broken]
        if broken:
            log.warning("%s", _broken_text(part, broken))


def _too_many_broken(part: Part, broken: list[Failed], dataset: Dataset) -> UserError:
    share = np.ceil(1000 * len(broken) / part.loaded.read) / 1000
    allowed = (
        f"dataset.max_dropped={dataset.max_dropped:g} allows {int(dataset.max_dropped * part.loaded.read) or 'none'}"
    )
    return UserError(
        f"{_broken_text(part, broken)}\n  {allowed}",
        where=part.where,
        remedy=f"mend or remove them, or leave them out with dataset.max_dropped={share:g}",
    )


def _broken_text(part: Part, broken: list[Failed]) -> str:
    lines = [f"{each.file} row {each.row}: {_one_line(each.reason)}" for each in broken[:ROWS_LISTED]]
    if len(broken) > ROWS_LISTED:
        lines.append(f"and {len(broken) - ROWS_LISTED:,} more")
    count = f"{len(broken):,} of {part.loaded.read:,} rows {'is' if len(broken) == 1 else 'are'} broken"
    return "\n  ".join([count, *lines])


def _too_long(part: Part, documents: Documents, reason: str, dataset: Dataset) -> UserError:
    listed: dict[str, list[int]] = {}
    for file, row in zip(documents.file[:1000].tolist(), documents.row[:1000].tolist(), strict=True):
        listed.setdefault(part.loaded.files[file], []).append(row)
    rows = "; ".join(f"{file} row {ranges(numbers)}" for file, numbers in listed.items())
    return UserError(
        f"{len(documents):,} rows are {reason}: {rows if len(rows) < 500 else rows[:500] + ' ...'}",
        where=part.where,
        remedy=f"dataset.max_length={int(documents.length.max())} holds them all; "
        "dataset.on_long=drop leaves them out, truncate cuts them",
    )


def refuse_empty(train: Sequence[Part], evaluated: Sequence[Part]) -> None:
    """Raise for every source that has nothing to train or evaluate on."""
    errors = []
    for part in (*train, *evaluated):
        used = part.eval if part in evaluated else part.train
        if part.weight == 0 and part not in evaluated:
            continue
        if not len(used):
            errors.append(UserError(f"none of its {part.loaded.read:,} rows is left{_why(part)}", where=part.where))
        elif problem := Gate.source(part.name, len(used), int(used.trained.sum())):
            errors.append(UserError(problem, where=part.where, remedy="look at its rows with: python -m sft.preview"))
    raise_all(errors)


def _why(part: Part) -> str:
    reasons = {
        **{each.kind: 1 for each in part.loaded.failed},
        **{reason: len(documents) for reason, documents in part.fitted.dropped.items()},
        **({IN_EVALUATION: len(part.leaked)} if len(part.leaked) else {}),
    }
    return f": {'; '.join(reasons)}" if reasons else ""


def _one_line(text: str, most: int = 300) -> str:
    line = "".join(character if character.isprintable() else " " for character in " ".join(text.split()))
    return line if len(line) <= most else f"{line[:most]} ..."
