"""data_report.json: what became of every row of every source, and the same as a short table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.data.documents import Documents, Rows
from sft.data.preview import visible
from sft.data.report.account import account
from sft.data.report.length import statistics

if TYPE_CHECKING:
    from rich.console import Console

    from sft.data.mixture import Mixture
    from sft.data.part import Part
    from sft.data.spec import Dataset

IN_EVALUATION = "in the evaluation too"  # why a row is not trained on
REASONS_LISTED = 200  # rows whose reason is given in full, of each source; all are named by reason


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
    sources = {}
    drawn_tokens = max(1, int(rows.documents.length.sum()))
    for part in train:
        drawn = mixture.rows[part.name]
        used = part.train.take(drawn)
        different = len(np.unique(drawn))
        sources[part.name] = {
            **_source(part),
            "used": {**_amount(used), "repeated": len(drawn) - different, "left_out": len(part.train) - different},
            "tokens": int(used.length.sum()),
            "trained_tokens": int(used.trained.sum()),
            "weight": {
                "stated": part.weight,
                "asked": round(mixture.shares[part.name], 6),
                "got": round(len(drawn) / max(1, len(mixture)), 6),
                "got_tokens": round(int(used.length.sum()) / drawn_tokens, 6),
            },
        }
    capacity = len(rows) * dataset.max_length
    return {
        "max_length": dataset.max_length,
        "packing": bool(dataset.packing),
        "sources": sources,
        "eval_sources": {part.name: {**_source(part), **_tokens(part.eval)} for part in evaluated},
        "train": {
            "rows": len(rows),
            "documents": len(rows.documents),
            **_tokens(rows.documents),
            "fill": round(int(rows.documents.length.sum()) / capacity, 4) if dataset.packing and capacity else None,
            "steps_per_epoch": None,
            "limited_by": mixture.limited_by,
        },
        "evaluation": {
            name: {"rows": len(part), "documents": len(part.documents), **_tokens(part.documents)}
            for name, part in evaluation.items()
        },
    }


def ranges(numbers: Iterable[int]) -> str:
    """Row numbers as a reader writes them: [3, 7, 8, 9, 12] is "3, 7-9, 12"."""
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
        rows_per_step: training rows that one optimizer step takes, over all processes and accumulated batches.
        drop_last: whether the rows that fill no whole step are left out.
    """
    steps, rest = divmod(report["train"]["rows"], rows_per_step)
    report["train"]["steps_per_epoch"] = steps + (rest > 0 and not drop_last)
    return report


def show_report(report: Mapping[str, Any], console: Console) -> None:
    """Print the table, and below it what was read of each source, what was not and what was changed."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("source", overflow="fold")
    for column in ("read", "dropped", "cut", "train", "eval", "tokens", "trained", "weight", "median", "longest"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, source in {**report["sources"], **report["eval_sources"]}.items():
        table.add_row(Text(visible(name)), *_cells(source))
    console.print(table)
    for line in account(report):
        console.print(Text(visible(line)), style="" if line.endswith(": nothing") else "yellow")
    console.print(Text(total(report)))


def _source(part: Part) -> dict[str, Any]:
    """What became of a source's rows up to the split."""
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


def _places(part: Part, documents: Documents) -> list[tuple[str, int]]:
    files = part.loaded.files
    return [(files[file], row) for file, row in zip(documents.file.tolist(), documents.row.tolist(), strict=True)]


def _tokens(documents: Documents) -> dict[str, int]:
    return {"tokens": int(documents.length.sum()), "trained_tokens": int(documents.trained.sum())}


def _amount(documents: Documents) -> dict[str, int]:
    return {"rows": len(documents), **_tokens(documents)}


def _cells(source: Mapping[str, Any]) -> Sequence[str]:
    length, used = source["length"], source.get("used")
    part = used or source["eval"]
    return (
        f"{source['read']:,}",
        f"{sum(source['dropped'].values()):,}",
        f"{source['truncated']:,}",
        f"{used['rows']:,}" if used else "-",
        f"{source['eval']['rows']:,}",
        _rounded(part["tokens"]),
        _rounded(part["trained_tokens"]),
        _weight(source.get("weight")),
        f"{length['median']:,}",
        f"{length['max']:,}",
    )


def _weight(weight: Mapping[str, float] | None) -> str:
    """The share that a source got, and the one asked for where rounding to whole rows makes it another."""
    if weight is None:
        return "-"
    got, asked = f"{weight['got']:.1%}", f"{weight['asked']:.1%}"
    return got if got == asked else f"{got} of {asked}"


def _rounded(count: int) -> str:
    """A count in at most five characters."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if count >= size:
            scale = 10**3 if unit == "k" else size
            return f"{count / scale:.0f}{unit}" if count >= 100 * scale else f"{count / scale:.1f}{unit}"
    return f"{count:,}"


def total(report: Mapping[str, Any]) -> str:
    """What is trained and evaluated on, in one line."""
    train = report["train"]
    packs = f" in {train['rows']:,} packs, {train['fill']:.1%} full" if report["packing"] else ""
    text = f"train: {train['documents']:,} rows{packs}, {train['tokens']:,} tokens, {train['trained_tokens']:,} trained"
    if train["steps_per_epoch"]:
        text += f"; {train['steps_per_epoch']:,} steps an epoch"
    if limit := train["limited_by"]:
        text += f"; limited by {limit}, which has no more rows for its weight (dataset.size=N repeats rows)"
    evaluation = report["evaluation"]
    if evaluation:
        text += "; evaluation: " + ", ".join(f"{name} {part['documents']:,} rows" for name, part in evaluation.items())
    return text
