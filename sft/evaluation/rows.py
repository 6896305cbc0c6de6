"""eval_rows.json: the scores of each evaluation row, so that two runs can be compared row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sft.run.directory import RunDirectory

NAME = "eval_rows.json"


def write_rows(
    run: RunDirectory, losses: Mapping[str, Sequence[tuple[float, int, int]]], matches: Mapping[str, Sequence[float]]
) -> None:
    """Store the scores of each evaluation row.

    Args:
        losses: for each source (summed loss, correct tokens, tokens) by row.
        matches: for each source whether the answer is the expected one, 0 or 1, by row.
    """
    content: dict[str, Any] = {
        name: {key: [row[at] for row in rows] for at, key in enumerate(("loss", "correct", "tokens"))}
        for name, rows in losses.items()
    }
    for name, values in matches.items():
        content.setdefault(name, {})["exact_match"] = list(values)
    if content:
        run.write_json(NAME, content)
