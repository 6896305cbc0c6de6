"""A sweep as leaderboard.csv, .md and .png in its directory, and on the terminal."""

from __future__ import annotations

import csv
import io
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sft.config.text import fenced, one_line
from sft.run.directory import RunDirectory
from sft.run.jsonable import plain as as_json
from sft.safety.secrets import redact
from sft.sweep.ranking import Leaderboard, Point, finite, point_keys, rank
from sft.sweep.results import JobResult, read_sweep
from sft.sweep.text import as_text, markdown_cell, markdown_table, plain, print_table, short, short_keys

# The metrics in the .md and the terminal, where some job has them; leaderboard.csv has all.
_SHOWN = ("eval_loss", "eval_exact_match", "eval_token_accuracy", "train_loss", "steps", "train_seconds")
POINTS_CSV = "leaderboard_points.csv"


def write_leaderboard(directory: Path, objective: str | None = None, direction: str | None = None) -> Leaderboard:
    """Rank a sweep and write leaderboard.csv, .md and .png into its directory, each atomically.

    Where points were run more than once also leaderboard_points.csv. Prints nothing: see `show`.

    Args:
        directory: the sweep's.
        objective: a metric in metrics.json to rank by; None for the sweep's own.
        direction: minimize or maximize; None: see `sft.sweep.ranking.rank`.

    Raises:
        UserError: the directory is not a sweep's, or no finished job has the objective.
        StorageError: the directory cannot be written.
    """
    from sft.sweep.picture import draw_leaderboard

    board = rank(read_sweep(directory), objective, direction)
    out = RunDirectory(board.directory)
    out.write_text("leaderboard.csv", _csv(csv_rows(board)))
    if board.repeated:
        out.write_text(POINTS_CSV, _csv(point_rows(board)))
    else:
        (board.directory / POINTS_CSV).unlink(missing_ok=True)  # left by an earlier, larger sweep
    out.write_with("leaderboard.png", lambda path: draw_leaderboard(board, path))
    out.write_text("leaderboard.md", markdown(board))
    return board


def show(board: Leaderboard) -> None:
    """Print the table to stdout, then the winner with the commands to chat with it and merge it."""
    print_table(*_jobs_table(board, short_keys(board.sweep.keys), _terminal_name))
    for job in board.unranked:
        if job.error:
            print(one_line(f"{_terminal_name(job)}: {_first_line(job.error)}"))
    if board.repeated:
        print()
        print_table(*_points_table(board, short_keys(board.sweep.keys)))
    print()
    print("\n".join(one_line(redact(line)) for line in _verdict(board)))
    for command in winner_commands(board):
        print(f"  {command}")


def csv_rows(board: Leaderboard) -> list[dict[str, str]]:
    """leaderboard.csv: rank, job, status, the swept keys, the objective, and all metrics of the jobs."""
    figures = dict.fromkeys([board.objective, *(key for job in board.sweep.jobs for key in job.figures)])
    rows = []
    for place, job in _in_order(board):
        row = {"rank": plain(place), "job": job.name, "status": job.status}
        row |= {key: plain(job.values.get(key)) for key in board.sweep.keys}
        row |= {key: plain(as_json(job.figures.get(key))) for key in figures if key not in row}
        rows.append(row | (_difference_cells(board, job) if board.differences else {}))
    return rows


def _difference_cells(board: Leaderboard, job: JobResult) -> dict[str, str]:
    """The 95% interval of a job's objective less the winner's, and what it says."""
    found = board.differences.get(job.number)
    return {
        "difference_low_95": plain(found.low if found else None),
        "difference_high_95": plain(found.high if found else None),
        "difference": found.verdict if found else "best" if job is board.winner else "",
    }


def point_rows(board: Leaderboard) -> list[dict[str, str]]:
    """leaderboard_points.csv: rank, the point's values, number of jobs and scores, mean, spread, best job."""
    keys, name = point_keys(board.sweep.keys), board.objective
    return [
        {
            "rank": plain(point.rank),
            **{key: plain(point.values[key]) for key in keys},
            "jobs": plain(len(point.jobs)),
            "n": plain(len(point.scores)),
            f"{name}_mean": plain(point.mean),
            f"{name}_std": plain(point.spread),
            f"{name}_best": plain(point.scores[0] if point.scores else None),
            f"{name}_worst": plain(point.scores[-1] if point.scores else None),
            "best_job": point.best.name if point.best else "",
        }
        for point in board.points
    ]


def markdown(board: Leaderboard) -> str:
    """leaderboard.md."""
    parts = [f"# {markdown_cell(board.directory.name)}"]
    if board.sweep.command:
        parts.append(fenced(one_line(board.sweep.command)))
    parts += [" ".join(map(markdown_cell, _verdict(board)))]
    if commands := winner_commands(board):
        parts.append(fenced("\n".join(commands)))
    parts.append(markdown_table(*_jobs_table(board, {key: key for key in board.sweep.keys}, lambda job: job.name)))
    if board.repeated:
        parts += ["## Points", markdown_table(*_points_table(board, {key: key for key in board.sweep.keys}))]
        parts.append("mean and spread (sample standard deviation) are over the n jobs of a point that have the metric.")
    failed = [job for job in board.unranked if job.error]
    if failed:
        listed = [
            f"- {markdown_cell(job.name)} ({job.status}): {markdown_cell(_first_line(job.error))}" for job in failed
        ]
        parts += ["## Not ranked", "\n".join(listed)]
    return "\n\n".join([*parts, "![leaderboard](leaderboard.png)"]) + "\n"


def winner_commands(board: Leaderboard) -> list[str]:
    """The commands to chat with the winner and merge it; a full fine-tune cannot be merged."""
    if board.winner is None or board.winner.path is None:
        return []
    path = board.winner.path
    here = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    run = shlex.quote(f"run={one_line(os.fspath(here))}")
    commands = [f'python -m sft.chat {run} prompt="..."']
    if not RunDirectory(path).model.is_dir():
        commands.append(f"python -m sft.merge {run}")
    return commands


def _verdict(board: Leaderboard) -> Iterator[str]:
    """The winner, in one or two sentences."""
    winner = board.winner
    count = len(board.sweep.jobs)
    if winner is None:
        finished = sum(job.status == "finished" for job in board.sweep.jobs)
        why = f"none has the metric {board.objective}" if finished else "none is finished"
        yield f"No winner: of {count} job{'s' * (count != 1)} {why}."
        return
    score = f"{board.objective} {short(board.score(winner))}"
    aim = {"minimize": "lowest", "maximize": "highest"}[board.direction]
    if not board.repeated:
        yield f"Best of {count} job{'s' * (count != 1)}: {winner.name}, {score} ({aim} wins)."
        return
    best = board.points[0]
    yield f"Best point of {len(board.points)}: {_setting(best)}, mean {board.objective} {_mean(best)} ({aim} mean wins)."
    yield f"Its best job: {winner.name}, {score}."
    if len(best.scores) < len(best.jobs):
        yield f"Only {len(best.scores)} of the point's {len(best.jobs)} jobs count: the others have no final {board.objective}."
    if board.ranked[0] is not winner:
        yield f"The best single job, {board.ranked[0].name}, is of a point with a worse mean."


def _jobs_table(
    board: Leaderboard, keys: dict[str, str], name: Callable[[JobResult], str]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of jobs."""
    shown = [key for key in _SHOWN if key != board.objective and _some(board, key)]
    figures = [board.objective, *shown]
    rows = []
    for place, job in _in_order(board):
        values = [short(job.values.get(key)) for key in keys]
        cells = [plain(place), name(job), job.status, *values, *(short(job.figures.get(key)) for key in figures)]
        rows.append([*cells, *([_difference(board, job)] if board.differences else [])])
    compared = [f"{board.objective} less the best, 95%"] if board.differences else []
    return ["rank", "job", "status", *keys.values(), *figures, *compared], rows


def _difference(board: Leaderboard, job: JobResult) -> str:
    """ "+0.01 to +0.04, worse"; "best" for the winner."""
    if job is board.winner:
        return "best"
    found = board.differences.get(job.number)
    return "" if found is None else f"{found.low:+.2g} to {found.high:+.2g}, {found.verdict}"


def _points_table(board: Leaderboard, keys: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of points."""
    own = point_keys(keys)
    rows = []
    for point in board.points:
        values = (short(point.values[key]) for key in own)
        best = point.best.name if point.best else ""
        rows.append([plain(point.rank), *values, str(len(point.scores)), short(point.mean), short(point.spread), best])
    return ["rank", *(keys[key] for key in own), "n", f"{board.objective} mean", "spread", "best job"], rows


def _in_order(board: Leaderboard) -> Iterator[tuple[int | None, JobResult]]:
    yield from enumerate(board.ranked, 1)
    yield from ((None, job) for job in board.unranked)


def _some(board: Leaderboard, figure: str) -> bool:
    return any(finite(job.figures.get(figure)) is not None for job in board.sweep.jobs)


def _setting(point: Point) -> str:
    return ", ".join(f"{key}={short(value)}" for key, value in point.values.items()) or "one setting"


def _mean(point: Point) -> str:
    if point.spread is None:
        return f"{short(point.mean)} (n={len(point.scores)})"
    return f"{short(point.mean)} ± {short(point.spread)} (n={len(point.scores)})"


def _terminal_name(job: JobResult) -> str:
    """The job's number where the directory's name begins with it: the swept keys have their own columns."""
    numbered = job.name == str(job.number) or job.name.startswith(f"{job.number}_")
    return str(job.number) if numbered else job.name


def _first_line(error: str | None) -> str:
    lines = [line for line in str(error or "").splitlines() if line.strip()]
    return one_line(lines[0], 300) if lines else ""


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(as_text, rows[0]))
    writer.writerows([as_text(value) for value in row.values()] for row in rows)
    return text.getvalue().encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be written
