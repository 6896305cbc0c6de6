"""The differences between runs: settings, versions, data, metrics and curves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.config.command_line.base import read_run
from sft.config.errors import UserError
from sft.config.paths import expanded
from sft.config.text import one_line
from sft.drawing.canvas import Curve, draw_curves, new_figure, printable, save
from sft.drawing.curves import curves
from sft.run.directory import RunDirectory
from sft.run.disk.atomic import replacing
from sft.run.record import read_record
from sft.sweep.ranking import finite
from sft.sweep.text import plain, print_table
from sft.training.resume.config_changes import flat, read_snapshot

PICTURES = (".png", ".svg", ".pdf")
_CURVES = {
    "loss": "training loss",
    "eval_loss": "evaluation loss",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
}
# Keys of run.json that describe the inputs of a run.
_MADE_OF = ("versions", "git", "hardware", "world_size", "tokenizer", "template", "data")
_ABSENT = "-"


@dataclass
class Run:
    """A run in a comparison.

    Attributes:
        letter: its name in the tables: A for the first, B for the second.
        name: the shortest end of its path that is unique.
        config: its resolved config, dotted keys.
        facts: its inputs from run.json, dotted keys.
        figures: metrics.json, including its status.
        curves: as from `sft.drawing.curves.curves`.
    """

    letter: str
    name: str
    config: dict[str, Any]
    facts: dict[str, Any]
    figures: dict[str, Any]
    curves: dict[str, Curve]


def read_runs(runs: Sequence[str]) -> list[Run]:
    """Read the runs to compare.

    Raises:
        UserError: fewer than two, the same twice, or a directory that is not a run's.
    """
    paths = [expanded(run).absolute() for run in runs]
    if len(paths) < 2:
        raise UserError("names fewer than two runs", where="runs", remedy="runs=[A,B]")
    twice = [path for index, path in enumerate(paths) if path.resolve() in {p.resolve() for p in paths[:index]}]
    if twice:
        raise UserError(f"names {twice[0]} twice", where="runs", remedy="name each run once")
    for run in runs:
        try:
            read_run(run)  # refuses what is not a run, and points to the jobs of a sweep
        except UserError as error:
            remedy = (error.remedy or "").replace("run=", "")
            raise UserError(error.what, where=f"runs: {run}", remedy=remedy) from None
    return [
        _read(path, letter_of(i), name) for i, (path, name) in enumerate(zip(paths, distinct_names(paths), strict=True))
    ]


def letter_of(index: int) -> str:
    """A to Z, then A1, B1 and so on."""
    return chr(ord("A") + index % 26) + (str(index // 26) if index >= 26 else "")


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are all different."""
    depth = 1
    while depth < max(len(path.parts) for path in paths):
        names = [os.path.join(*path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
        depth += 1
    return [str(path) for path in paths]


def differing(tables: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The keys whose values are not the same in all tables, each with its value in every table, None where it is
    missing."""
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = {key: [table.get(key) for table in tables] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values[1:])}


def show(runs: Sequence[Run]) -> None:
    """Print the differences, then the metrics with their differences, to stdout."""
    letters = [run.letter for run in runs]
    for run in runs:
        print(f"{run.letter}  {one_line(run.name)}")
    print()
    _section("config", letters, differing([run.config for run in runs]))
    print()
    if any(run.facts for run in runs):
        _section("made of", letters, differing([run.facts for run in runs]))
    else:
        print("inputs: not recorded")
    print()
    print_table(*figures_table(runs))


def figures_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of all metrics, each value followed by its difference from the first run."""
    first, *others = runs
    header = ["figure", first.letter]
    for run in others:
        header += [run.letter, f"{run.letter} - {first.letter}", "%"]
    keys = dict.fromkeys(key for run in runs for key in run.figures)
    rows = []
    for key in keys:
        row = [key, _cell(first.figures.get(key))]
        for run in others:
            row += [_cell(run.figures.get(key)), *_difference(first.figures.get(key), run.figures.get(key))]
        rows.append(row)
    return header, rows


def check_picture(output: str) -> Path:
    """The path of the picture.

    Raises:
        UserError: it is a directory, or not the name of a picture.
    """
    path = expanded(output).absolute()
    if path.is_dir():
        raise UserError("is a directory", where=f"output={output}", remedy=f"output={Path(output) / 'compare.png'}")
    if path.suffix.lower() not in PICTURES:
        raise UserError(
            "is not the name of a picture",
            where=f"output={output}",
            remedy=f"end it in {', '.join(PICTURES)}, or output=null",
        )
    return path


def write_picture(runs: Sequence[Run], path: Path) -> None:
    """Draw the runs' curves together: losses, learning rate, gradient norm; without those that no run logged."""
    with replacing(path) as temporary:
        draw_runs(runs, temporary)


def draw_runs(runs: Sequence[Run], path: Path) -> None:
    """Draw to a path; the suffix names the format."""
    from matplotlib import colormaps

    names = [name for name in _CURVES if any(name in run.curves for run in runs)] or ["loss"]
    figure = new_figure((11, 3.2 * len(names) + 0.8))
    shades = colormaps["tab10"].colors if len(runs) <= 10 else colormaps["tab20"].colors  # type: ignore[attr-defined]
    for index, (axes, name) in enumerate(
        zip(figure.subplots(len(names), 1, squeeze=False, sharex=True).flat, names, strict=True)
    ):
        lines = [
            (f"{run.letter}: {run.name[-46:]}", run.curves.get(name), {"color": shades[place % len(shades)]})
            for place, run in enumerate(runs)
        ]
        draw_curves(axes, [(printable(label), *rest) for label, *rest in lines])  # type: ignore[misc]
        axes.set_ylabel(_CURVES[name])
        if index == len(names) - 1:
            axes.set_xlabel("step")
    save(figure, path)


def _read(path: Path, letter: str, name: str) -> Run:
    run = RunDirectory(path)
    record = read_record(run)
    facts = flat({key: record[key] for key in _MADE_OF if record.get(key) is not None})
    stored = run.read_json(run.metrics_json, {}) or {}
    figures = {key: value for key, value in stored.items() if value is not None and not isinstance(value, dict)}
    config = flat(read_snapshot(run) or {})
    return Run(letter, name, config, facts, figures, curves(run.read_jsonl(run.metrics_jsonl)))


def _section(title: str, letters: Sequence[str], rows: Mapping[str, Sequence[Any]]) -> None:
    if rows:
        print_table([title, *letters], [[key, *map(_cell, values)] for key, values in rows.items()])
    else:
        print(f"{title}: no difference")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return one_line(plain(value), 120) or _ABSENT


def _difference(before: Any, after: Any) -> tuple[str, str]:
    """after - before, and relative to before; empty where either is not a number."""
    first, second = finite(before), finite(after)
    if first is None or second is None:
        return "", ""
    change = second - first
    share = f"{100 * change / abs(first):+.1f}" if first else ""
    return (f"{change:+.5g}" if change else "0"), (share if change else "0")
