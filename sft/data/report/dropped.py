"""Dropped rows: how many are allowed, and the error that lists them where there are more."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sft.config.errors import UserError, raise_all
from sft.config.text import one_line
from sft.data.documents import Documents
from sft.data.labels.gate import Gate
from sft.data.report.length import statistics
from sft.data.report.report import IN_EVALUATION, named, ranges

if TYPE_CHECKING:
    from sft.data.load import Failed
    from sft.data.part import Part
    from sft.data.spec import Dataset

log = logging.getLogger(__name__)

LINES = 20  # lines of an error about broken rows; further rows are counted
ALONE = 3  # rows with the same reason that are listed individually; of more only the first
REMEDIES = {  # by reason, for sources all of whose broken rows share it
    "a control token in the text": "dataset.control_tokens=text treats it as ordinary text",
    "unknown role": "name the roles user, assistant, system and tool, in the file or with your own function (convert)",
    "the chat template refuses it": "template=auto picks a template that renders the rows; template=chatml renders any rows",
    "a turn is rendered differently than in generation": "dataset.history=expand gives such a turn a row of its own",
    "a </think> that the chat template would cut the answer at": "dataset.control_tokens=text keeps it as ordinary text",
}


def refuse_losses(parts: Sequence[Part], dataset: Dataset) -> None:
    """Raise UserError for every source that lost more rows than allowed."""
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
    allowed = (
        f"dataset.max_dropped={dataset.max_dropped:g} allows {int(dataset.max_dropped * part.loaded.read) or 'none'}"
    )
    return UserError(
        f"{_broken_text(part, broken)}\n  {allowed}", where=part.where, remedy=_remedy(broken, part.loaded.read)
    )


def _remedy(broken: list[Failed], read: int) -> str:
    """What to do about broken rows: by their reason where they share one; dropping them only where rows remain."""
    kinds = {each.kind for each in broken}
    known = REMEDIES.get(next(iter(kinds))) if len(kinds) == 1 else None
    share = np.ceil(1000 * len(broken) / read) / 1000
    if len(broken) < read:
        return f"{known or 'fix or remove them'}, or drop them with dataset.max_dropped={share:g}"
    return known or "fix the file, or convert its rows to conversations with your own function (convert)"


def _broken_text(part: Part, broken: list[Failed]) -> str:
    """How many rows are broken, and why: a reason that many share is listed once, with its first row."""
    by_kind: dict[str, list[Failed]] = {}
    for each in broken:
        by_kind.setdefault(each.kind, []).append(each)
    lines: list[str] = []
    told = 0
    for each in broken:
        same = by_kind[each.kind]
        if (len(same) > ALONE and each is not same[0]) or len(lines) >= LINES:
            continue
        lines.append(f"{each.file} row {each.row}: {one_line(each.reason, 300)}")
        told += 1
        if len(same) > ALONE:
            places = "; ".join(f"{file} row {rows}" for file, rows in named((f.file, f.row) for f in same[1:]).items())
            lines.append(f"and {len(same) - 1:,} more for this reason: {one_line(places, 120)}")
            told += len(same) - 1
    if told < len(broken):
        lines.append(f"and {len(broken) - told:,} more")
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
        remedy=f"dataset.max_length={int(documents.length.max())} keeps all of them; "
        "dataset.on_long=drop drops them, truncate cuts them",
    )


def refuse_empty(train: Sequence[Part], evaluated: Sequence[Part]) -> None:
    """Raise UserError for every source that has nothing to train or evaluate on."""
    errors = []
    for part in (*train, *evaluated):
        used = part.eval if part in evaluated else part.train
        if part.weight == 0 and part not in evaluated:
            continue
        if not len(used):
            what = f"none of its {part.loaded.read:,} rows remains{_why(part)}"
            errors.append(UserError(what, where=part.where, remedy=_longer(part)))
        elif problem := Gate.source(part.name, len(used), int(used.trained.sum())):
            errors.append(UserError(problem, where=part.where, remedy="see its rows with: python -m sft.preview"))
    raise_all(errors)


def _why(part: Part) -> str:
    reasons = [
        *dict.fromkeys(each.kind for each in part.loaded.failed),
        *(f"{reason} ({_lengths(documents)})" for reason, documents in part.fitted.dropped.items()),
        *([IN_EVALUATION] if len(part.leaked) else []),
    ]
    return f": {'; '.join(reasons)}" if reasons else ""


def _lengths(documents: Documents) -> str:
    known = statistics(documents.length)
    return f"they have {known['min']:,} to {known['max']:,} tokens, median {known['median']:,}"


def _longer(part: Part) -> str | None:
    """The key that would keep rows that are too long, with the length needed for all of them."""
    lengths = [length for documents in part.fitted.dropped.values() for length in documents.length.tolist()]
    if not lengths:
        return None
    return (
        f"dataset.max_length={max(lengths)} keeps all of them; dataset.on_long=truncate cuts after an answer that fits"
    )
