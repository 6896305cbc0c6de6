"""data_report.json: what became of every row of every source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.data.documents import Documents, Rows
from sft.data.report.length import statistics

if TYPE_CHECKING:
    from sft.data.mixture import Mixture
    from sft.data.part import Part
    from sft.data.spec import Dataset

IN_EVALUATION = "in the evaluation too"  # a reason for not training on a row
REASONS_LISTED = 200  # rows per source whose reason is given in full; all are listed by reason


def build_report(
    train: Sequence[Part],
    evaluated: Sequence[Part],
    mixture: Mixture,
    rows: Rows,
    evaluation: Mapping[str, Rows],
    dataset: Dataset,
) -> dict[str, Any]:
    """The content of data_report.json.

    Per source: read; converted; broken and skipped (no conversation, or no labels, could be made; skipped: left out by
    the user's function or by a mark on the row); rows, which the converted ones made (several of one with
    history=expand); duplicates, how many of them equal another; dropped by reason, with the rows named; notes, what rows
    hold that was not read or was read otherwise; truncated; train and eval, between which the rows that fit were split;
    used, what the mixture drew; weight, as shares asked for and got.
    """
    tokens = int(rows.documents.length.sum())
    capacity = len(rows) * dataset.max_length
    return {
        "max_length": dataset.max_length,
        "packing": bool(dataset.packing),
        "sources": {part.name: {**_source(part), **_drawn(part, mixture, tokens)} for part in train},
        "eval_sources": {part.name: {**_source(part), **_tokens(part.eval)} for part in evaluated},
        "train": {
            "rows": len(rows),
            "documents": len(rows.documents),
            **_tokens(rows.documents),
            "fill": round(tokens / capacity, 4) if dataset.packing and capacity else None,
            "steps_per_epoch": None,
            "limited_by": mixture.limited_by,
        },
        "evaluation": {
            name: {"rows": len(part), "documents": len(part.documents), **_tokens(part.documents)}
            for name, part in evaluation.items()
        },
    }


def ranges(numbers: Iterable[int]) -> str:
    """Row numbers as ranges: [3, 7, 8, 9, 12] is "3, 7-9, 12"."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def named(places: Iterable[tuple[str, int]]) -> dict[str, str]:
    """(file, row) pairs as {file: "3, 7-9"}."""
    by_file: dict[str, list[int]] = {}
    for file, row in places:
        by_file.setdefault(file, []).append(row)
    return {file: ranges(rows) for file, rows in by_file.items()}


def unaccounted(source: Mapping[str, Any]) -> tuple[int, int]:
    """Rows of a source's part of the report that are neither used nor reported as dropped: (conversations, rows).

    (0, 0) when the report is whole: every row read was converted, broken or skipped, and every row made of the
    converted ones is trained on, evaluated on, or dropped.
    """
    conversations = source["read"] - source["converted"] - source["broken"] - source["skipped"]
    rows = source["rows"] - source["train"]["rows"] - source["eval"]["rows"]
    rows -= source["too_long"] + source["in_evaluation"]
    named_twice = sum(source["dropped"].values())
    named_twice -= source["broken"] + source["skipped"] + source["too_long"] + source["in_evaluation"]
    return conversations, rows + named_twice


def with_steps(report: dict[str, Any], rows_per_step: int, drop_last: bool = False) -> dict[str, Any]:
    """The report with the optimizer steps of an epoch filled in.

    Args:
        report: as `prepare` gives it; changed in place.
        rows_per_step: training rows of one optimizer step, over all processes and accumulated batches.
        drop_last: whether rows that do not fill a whole step are left out.
    """
    steps, rest = divmod(report["train"]["rows"], rows_per_step)
    report["train"]["steps_per_epoch"] = steps + (rest > 0 and not drop_last)
    return report


def _source(part: Part) -> dict[str, Any]:
    """The outcome of a source's rows up to the split."""
    loaded = part.loaded
    broken = sum(each.broken for each in loaded.failed)
    long = {reason: _places(part, documents) for reason, documents in part.fitted.dropped.items()}
    cut = _places(part, part.fitted.truncated) if part.fitted.truncated is not None else []
    by_reason: dict[str, list[tuple[str, int]]] = {}
    for each in loaded.failed:
        by_reason.setdefault(each.kind, []).append((each.file, each.row))
    by_reason |= long
    if len(part.leaked):
        by_reason[IN_EVALUATION] = _places(part, part.leaked)
    return {
        "description": loaded.described,
        "format": loaded.format,
        "fingerprint": loaded.fingerprint,
        "cached": loaded.cached,
        "checked": loaded.checked,
        "read": loaded.read,
        "converted": loaded.read - len(loaded.failed),
        "broken": broken,
        "skipped": len(loaded.failed) - broken,
        "rows": len(loaded.documents),
        "duplicates": len(loaded.documents) - len(np.unique(loaded.documents.digest)),
        "too_long": sum(map(len, long.values())),
        "in_evaluation": len(part.leaked),
        "dropped": {reason: len(places) for reason, places in by_reason.items()},
        "dropped_rows": {reason: named(places) for reason, places in by_reason.items()},
        "reasons": [f"{each.file} row {each.row}: {each.reason}" for each in loaded.failed[:REASONS_LISTED]],
        "notes": loaded.notes,
        "truncated": len(cut),
        "truncated_rows": named(cut),
        "train": _amount(part.train),
        "eval": _amount(part.eval),
        "length": statistics(loaded.documents.length),
    }


def _drawn(part: Part, mixture: Mixture, tokens: int) -> dict[str, Any]:
    """What the mixture drew of a source that is trained on.

    Args:
        tokens: of the whole mixture.
    """
    drawn = mixture.rows[part.name]
    used = part.train.take(drawn)
    different = len(np.unique(drawn))
    return {
        "used": {**_amount(used), "repeated": len(drawn) - different, "left_out": len(part.train) - different},
        "tokens": int(used.length.sum()),
        "trained_tokens": int(used.trained.sum()),
        "weight": {
            "stated": part.weight,
            "asked": round(mixture.shares[part.name], 6),
            "got": round(len(drawn) / max(1, len(mixture)), 6),
            "got_tokens": round(int(used.length.sum()) / max(1, tokens), 6),
        },
    }


def _places(part: Part, documents: Documents) -> list[tuple[str, int]]:
    files = part.loaded.files
    return [(files[file], row) for file, row in zip(documents.file.tolist(), documents.row.tolist(), strict=True)]


def _tokens(documents: Documents) -> dict[str, int]:
    return {"tokens": int(documents.length.sum()), "trained_tokens": int(documents.trained.sum())}


def _amount(documents: Documents) -> dict[str, int]:
    return {"rows": len(documents), **_tokens(documents)}
