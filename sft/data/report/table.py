"""The data report as a short table, with what was read of each source, what was not and what was changed below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sft.data.preview import visible
from sft.data.report.account import account

if TYPE_CHECKING:
    from rich.console import Console


def show_report(report: Mapping[str, Any], console: Console) -> None:
    """Print the table, and below it what was read, not read and changed of each source."""
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


def total(report: Mapping[str, Any]) -> str:
    """The training and evaluation rows in one line."""
    train = report["train"]
    packs = f" in {train['rows']:,} packs, {train['fill']:.1%} full" if report["packing"] else ""
    text = f"train: {train['documents']:,} rows{packs}, {train['tokens']:,} tokens, {train['trained_tokens']:,} trained"
    if train["steps_per_epoch"]:
        text += f"; {train['steps_per_epoch']:,} steps per epoch"
    if limit := train["limited_by"]:
        text += f"; limited by {limit}, which has no more rows for its weight (dataset.size=N repeats rows)"
    evaluation = report["evaluation"]
    if evaluation:
        text += "; evaluation: " + ", ".join(f"{name} {part['documents']:,} rows" for name, part in evaluation.items())
    return text


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
    """The share that a source got, and the requested one where rounding to whole rows makes a difference."""
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
