"""leaderboard.csv, .md and .png: order, points, winner, and the contents of cells."""

import csv
import html
import itertools
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sft.config.errors import UserError
from sft.config.text import one_line
from sft.run.lock import RunLock
from sft.sweep.leaderboard import csv_rows, markdown, show, winner_commands, write_leaderboard
from sft.sweep.ranking import rank
from sft.sweep.results import JobResult, SweepResults, read_sweep
from sft.sweep.text import markdown_cell, markdown_table

NAN = float("nan")
ROOT = Path(__file__).parents[2]


def table(directory, name="leaderboard.csv"):
    with open(directory / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def job(number, values=None, status="finished", **figures):
    return JobResult(number, f"{number}_job", values=values or {}, status=status, figures=figures)


def test_finished_jobs_come_first_by_the_objective_and_the_others_by_number(make_sweep):
    jobs = [("8", "finished", 2.0), ("4", "failed", None), ("16", "finished", 1.0), ("32", "pruned", 0.5)]
    jobs += [("64", "nowhere", None), ("2", "finished", 1.0), ("1", "pending", None), ("0", "interrupted", 3.0)]
    sweep = make_sweep(["lora.r"], [((r,), status, loss) for r, status, loss in jobs])
    write_leaderboard(sweep)
    rows = table(sweep)
    assert list(rows[0])[:5] == ["rank", "job", "status", "lora.r", "eval_loss"]
    assert {"steps", "train_loss", "eval_perplexity", "tokens_per_second"} < set(rows[0])
    assert [(row["rank"], row["job"], row["status"], row["lora.r"], row["eval_loss"]) for row in rows] == [
        ("1", "2_job", "finished", "16", "1.0"),
        ("2", "5_job", "finished", "2", "1.0"),
        ("3", "0_job", "finished", "8", "2.0"),
        ("", "1_job", "failed", "4", ""),
        ("", "3_job", "pruned", "32", "0.5"),
        ("", "4", "failed", "64", ""),
        ("", "6_job", "pending", "1", ""),
        ("", "7_job", "interrupted", "0", "3.0"),
    ]
    text = (sweep / "leaderboard.md").read_text()
    assert "- 1_job (failed): RuntimeError: 1 went wrong\n- 4 (failed): RuntimeError: 4 went wrong\n" in text
    assert "second line" not in text


def test_a_jobs_own_files_take_precedence_over_sweep_json(make_sweep):
    sweep = make_sweep(["lora.r"], [(("4",), "finished", 1.0), (("8",), "running", 2.0), (("16",), "running", 3.0)])
    content = json.loads((sweep / "sweep.json").read_text())
    content["jobs"][0]["status"] = "running"
    (sweep / "sweep.json").write_text(json.dumps(content))
    with RunLock(sweep / "1_job"):
        found = {job.number: job.status for job in read_sweep(sweep).jobs}
    assert found == {0: "finished", 1: "running", 2: "interrupted"}, "a running run without a holder was killed"


def test_an_interrupted_job_shows_its_last_evaluation(make_sweep, make_run):
    sweep = make_sweep(["lora.r"], [(("4",), "finished", 1.0)])
    make_run("sweep/0_job", {}, "pruned", curve=[4.0, 3.5])
    (row,) = table(write_leaderboard(sweep).directory)
    assert (row["rank"], row["status"], row["eval_loss"], row["steps"]) == ("", "pruned", "3.5", "20")


def test_broken_files_of_one_job_do_not_stop_the_others(make_sweep):
    sweep = make_sweep(["lora.r"], [(("4",), "finished", 1.0), (("8",), "finished", 2.0)])
    (sweep / "0_job" / "metrics.json").write_text("{")
    board = write_leaderboard(sweep)
    assert [(row["job"], row["status"]) for row in table(sweep)] == [("1_job", "finished"), ("0_job", "unreadable")]
    assert "metrics.json" in board.unranked[0].error


def test_without_sweep_json_the_differing_keys_are_the_swept_ones(make_run, tmp_path):
    for number, (r, rate, name) in enumerate([(4, 1e-3, "a"), (8, 1e-3, "b"), (8, 1e-4, "c")]):
        config = {"name": name, "lora": {"r": r, "alpha": 16}, "trainer": {"learning_rate": rate}}
        make_run(f"sweep/{number + 9}_x", config, eval_loss=1.0 + number)
    (tmp_path / "sweep" / "notes").mkdir()
    make_run("sweep/.tmp-12_x", {"seed": 5})
    write_leaderboard(tmp_path / "sweep")
    rows = table(tmp_path / "sweep")
    assert [(row["job"], row["lora.r"], row["trainer.learning_rate"]) for row in rows] == [
        ("9_x", "4", "0.001"),
        ("10_x", "8", "0.001"),
        ("11_x", "8", "0.0001"),
    ]
    assert "lora.alpha" not in rows[0] and "name" not in rows[0]


def test_seeds_of_a_point_are_its_mean_and_spread_and_the_winner_is_of_the_best_point(make_sweep, capsys):
    jobs = [(("4", "1"), "finished", 1.0), (("4", "2"), "finished", 5.0), (("8", "1"), "finished", 2.0)]
    jobs += [(("8", "2"), "finished", 1.5), (("8", "3"), "failed", None), (("16", "1"), "failed", None)]
    sweep = make_sweep(["lora.r", "seed"], jobs)
    board = write_leaderboard(sweep)
    points = table(sweep, "leaderboard_points.csv")
    spread = statistics.stdev([2.0, 1.5])
    assert [(p["rank"], p["lora.r"], p["jobs"], p["n"], p["eval_loss_mean"], p["best_job"]) for p in points] == [
        ("1", "8", "3", "2", "1.75", "3_job"),
        ("2", "4", "2", "2", "3.0", "0_job"),
        ("", "16", "1", "0", "", ""),
    ]
    assert float(points[0]["eval_loss_std"]) == spread
    assert board.winner.name == "3_job" and board.ranked[0].name == "0_job"
    show(board)
    out = capsys.readouterr().out
    assert f"Best point of 3: lora.r=8, mean eval_loss 1.75 ± {spread:.5g} (n=2)" in out
    assert "Only 2 of the point's 3 jobs count" in out
    assert "The best single job, 0_job, is of a point with a worse mean." in out
    text = (sweep / "leaderboard.md").read_text()
    assert "## Points" in text and f"| 1 | 8 | 2 | 1.75 | {spread:.5g} | 3_job |" in text


def test_two_spellings_of_one_value_are_one_point(make_sweep):
    sweep = make_sweep(["trainer.learning_rate"], [(("1e-3",), "finished", 1.0), (("0.001",), "finished", 2.0)])
    assert len(write_leaderboard(sweep).points) == 1
    assert (sweep / "leaderboard_points.csv").exists()
    make_sweep(["trainer.learning_rate"], [(("1e-3",), "finished", 1.0)])
    write_leaderboard(sweep)
    assert not (sweep / "leaderboard_points.csv").exists(), "that of the larger sweep is gone"


@pytest.mark.parametrize(
    ("given", "recorded", "names"),
    [
        ((None, None), {}, ["1_x", "0_x"]),
        (("eval_exact_match", None), {}, ["0_x", "1_x"]),
        (("eval_exact_match", "minimize"), {}, ["1_x", "0_x"]),
        ((None, None), {"objective": "eval_exact_match", "direction": None}, ["0_x", "1_x"]),
        ((None, None), {"objective": "eval_exact_match", "direction": "minimize"}, ["1_x", "0_x"]),
        ((None, "maximize"), {}, ["0_x", "1_x"]),
    ],
)
def test_objective_and_direction(make_run, tmp_path, given, recorded, names):
    for number, (loss, match) in enumerate([(2.0, 0.9), (1.0, 0.1)]):
        config = {"objective": None, "direction": None, **recorded, "seed": number}
        make_run(f"sweep/{number}_x", config, eval_loss=loss, eval_exact_match=match)
    assert [job.name for job in write_leaderboard(tmp_path / "sweep", *given).ranked] == names


def test_a_sweep_without_evaluation_is_ranked_by_training_loss(make_run, tmp_path):
    make_run("sweep/0_x", {"seed": 0}, train_loss=2.0)
    make_run("sweep/1_x", {"seed": 1}, train_loss=1.0)
    board = write_leaderboard(tmp_path / "sweep")
    assert (board.objective, board.winner.name) == ("train_loss", "1_x")


@pytest.mark.parametrize(
    ("prepare", "objective", "says"),
    [
        (lambda d, run: None, None, "no such directory"),
        (lambda d, run: d.mkdir(), None, "has no sweep.json and no run in it"),
        (lambda d, run: run("sweep", {}, eval_loss=1.0), None, "is the directory of one run"),
        (lambda d, run: run("sweep/0", {}, eval_loss=1.0), "eval_los", "did you mean objective=eval_loss?"),
    ],
)
def test_jobs_that_cannot_be_ranked_are_refused(tmp_path, make_run, prepare, objective, says):
    prepare(tmp_path / "sweep", make_run)
    with pytest.raises(UserError, match=says.replace("?", r"\?")):
        write_leaderboard(tmp_path / "sweep", objective)
    assert not (tmp_path / "sweep" / "leaderboard.csv").exists()


def test_the_winners_commands(make_sweep, monkeypatch):
    sweep = make_sweep(["lora.r"], [(("4",), "finished", 1.0)])
    monkeypatch.chdir(sweep.parent)
    assert winner_commands(rank(read_sweep(sweep))) == [
        'python -m sft.chat run=sweep/0_job prompt="..."',
        "python -m sft.merge run=sweep/0_job",
    ]
    (sweep / "0_job" / "model").mkdir()
    assert winner_commands(rank(read_sweep(sweep))) == ['python -m sft.chat run=sweep/0_job prompt="..."']


RANGES = [str(r) for r in (4, 8, 16, 32, 64)]
RATES = ["1e-5", "1e-4", "3e-4", "1e-3"]
LONG = "x" * 300
SWEEPS = {
    "one job": (["lora.r"], [(("4",), "finished", 1.0)]),
    "no swept key": ([], [((), "finished", 1.0)]),
    "twenty jobs of two keys": (
        ["lora.r", "trainer.learning_rate"],
        [(pair, "finished", 1.0 + i % 7) for i, pair in enumerate(itertools.product(RANGES, RATES))],
    ),
    "three keys": (
        ["lora.r", "trainer.learning_rate", "dataset"],
        [((r, "1e-3", d), "finished", float(r)) for r in RANGES for d in ("a", "b")],
    ),
    "all failed": (["lora.r", "seed"], [((r, "1"), "failed", None) for r in RANGES]),
    "nothing but sweep.json": (["lora.r"], [(("4",), "nowhere", None), (("8",), "pending", None)]),
    "pruned, failed and diverged": (
        ["lora.r", "dataset"],
        [
            (("4", "a"), "finished", 1.0),
            (("8", "a"), "pruned", 2.0),
            (("4", "b"), "failed", None),
            (("8", "b"), "finished", 900.0),
        ],
    ),
    "a search of two numbers": (
        ["trainer.learning_rate", "lora.lora_dropout"],
        [((str(1.37**-i), str(0.01 * i)), "finished", 2 + math.sin(i)) for i in range(20)],
    ),
    "twelve keys": ([f"key{i}" for i in range(12)], [(tuple(map(str, range(12))), "finished", 1.0)] * 2),
    "seeds alone": (["seed"], [((str(i),), "finished", 1.0 + i) for i in range(3)]),
    "odd values": (
        ["dataset.path", "template.system"],
        [
            ((LONG, "$x_"), "finished", 1.0),
            (("a\nb|c", "$\\frac{"), "finished", 2.0),
            ((None, "名 🙂"), "failed", None),
        ],
    ),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_can_be_plotted(make_sweep, name, recwarn):
    keys, jobs = SWEEPS[name]
    sweep = make_sweep(keys, jobs)
    show(write_leaderboard(sweep))
    with Image.open(sweep / "leaderboard.png") as picture:
        assert picture.format == "PNG"
        assert 1000 < picture.size[0] < 2000
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 20
    assert not list(recwarn)
    assert len(table(sweep)) == len(jobs)
    assert not list(sweep.glob(".tmp-*"))


@pytest.mark.parametrize("status", ["finished", "pruned", "failed"])
def test_pruned_and_failed_jobs_are_marked_in_their_colour(make_sweep, status):
    marks = {"pruned": (255, 127, 14), "failed": (214, 39, 40)}
    sweep = make_sweep(["lora.r"], [(("4",), "finished", 1.0), (("8",), status, None)])
    write_leaderboard(sweep)
    with Image.open(sweep / "leaderboard.png") as picture:
        found = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {name for name, colour in marks.items() if colour in found} == {status} - {"finished"}


@settings(deadline=None, max_examples=60)
@example([(1.5e306, "finished"), (1.78e308, "finished"), (-1.78e308, "finished")])  # sums and squares overflow
@given(st.lists(st.tuples(st.one_of(st.none(), st.floats()), st.sampled_from(["finished", "failed", "pruned"]))))
def test_ranks_are_one_to_n_and_in_order(found):
    jobs = [job(number, status=status, eval_loss=loss) for number, (loss, status) in enumerate(found)]
    for direction, sign in (("minimize", 1), ("maximize", -1)):
        board = rank(SweepResults(Path("sweep"), [], jobs), direction=direction)
        scores = [sign * job.figures["eval_loss"] for job in board.ranked]
        assert scores == sorted(scores) and all(map(math.isfinite, scores))
        assert all(job.status == "finished" for job in board.ranked)
        assert sorted(job.number for job in [*board.ranked, *board.unranked]) == list(range(len(jobs)))
        assert [job.number for job in board.unranked] == sorted(job.number for job in board.unranked)


@settings(deadline=None, max_examples=100)
@given(st.text())
def test_no_text_breaks_a_markdown_table(text):
    cell = markdown_cell(text)
    assert not set(cell) & set("|\n\r<>`\\") and cell.isprintable()
    assert html.unescape(cell) == one_line(text)
    assert all(line.count("|") == 3 for line in markdown_table(["a", text], [["1", text]]).split("\n"))


@settings(deadline=None, max_examples=60)
@given(st.text(), st.text())
def test_any_value_round_trips_in_the_csv_and_keeps_the_markdown_table_valid(value, error):
    failed = job(1, {"key": value}, "failed")
    failed.error = error
    board = rank(SweepResults(Path("sweep"), ["key"], [job(0, {"key": value}, eval_loss=1.0), failed]))
    assert [row["key"] for row in csv_rows(board)] == [value, value]
    rows = [line for line in markdown(board).split("\n") if line.startswith("|") and line.endswith("|")]
    assert len({line.count("|") for line in rows}) <= 2


def test_the_command_prints_the_table_and_accepts_any_directory(make_sweep, tmp_path):
    sweep = make_sweep(["lora.r"], [(("4",), "finished", 2.0), (("8",), "finished", 1.0)])
    odd = sweep.rename(tmp_path / "a sweep, of=1 [x]?")
    done = subprocess.run(
        [sys.executable, "-m", "sft.leaderboard", f"dir={odd}"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[:3] for line in done.stdout.splitlines()[1:3]] == [
        ["1", "1", "finished"],
        ["2", "0", "finished"],
    ]
    assert done.stdout.splitlines()[-1] == f"  python -m sft.merge 'run={odd}/1_job'"
    assert (odd / "leaderboard.md").is_file()
    done = subprocess.run(
        [sys.executable, "-m", "sft.leaderboard", "dir=/nowhere"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "no such directory" in done.stderr and "Traceback" not in done.stderr
