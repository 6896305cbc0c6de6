"""sft.compare: settings, versions, data, metrics and curves of runs side by side."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sft.config.command_line.overrides import quote_literal
from sft.config.errors import UserError
from sft.sweep.compare import check_picture, differing, distinct_names, figures_table, read_runs, show, write_picture
from sft.sweep.leaderboard import write_leaderboard

TINY = [
    "model=tiny",
    "lora=r8",
    "dataset=tickets",
    "dataset.sources.tickets.generator.rows=16",
    "dataset.eval_sources.known.generator.rows=4",
    "dataset.eval_sources.unseen.generator.rows=4",
    "dataset.num_proc=0",
    "trainer.per_device_train_batch_size=4",
    "trainer.max_steps=2",
    "callbacks=quiet",
]
FACTS = {"versions": {"torch": "2.13.0", "peft": "0.21"}, "data": {"rows": "abc"}, "started": "now"}


@pytest.fixture
def two(make_run):
    other = {**FACTS, "versions": {"torch": "2.14.0", "peft": "0.21"}, "data": {"rows": "xyz"}, "started": "later"}
    first = make_run("a/run", {"lora": {"r": 4}, "seed": 1}, curve=[2.0, 1.0], facts=FACTS, eval_loss=2.0, eval_f1=0.0)
    second = make_run("b/run", {"lora": None, "seed": 1}, curve=[3.0], facts=other, eval_loss=1.5, eval_f1=0.5)
    return [str(first), str(second)]


def test_only_differences_are_shown(two, capsys):
    show(read_runs(two))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[:4] == [["A", "a/run"], ["B", "b/run"], ["config", "A", "B"], ["lora.r", "4", "-"]]
    assert lines[4:7] == [["made", "of", "A", "B"], ["versions.torch", "2.13.0", "2.14.0"], ["data.rows", "abc", "xyz"]]
    assert ["eval_loss", "2", "1.5", "-0.5", "-25.0"] in lines
    assert ["status", "finished", "finished"] in lines
    assert ["eval_f1", "0", "0.5", "+0.5"] in lines, "no share of nothing"


def test_more_runs_are_compared_with_the_first(two, make_run):
    third = make_run("c/run", {"lora": {"r": 4}}, eval_loss=4.0)
    header, rows = figures_table(read_runs([*two, str(third)]))
    assert header == ["figure", "A", "B", "B - A", "%", "C", "C - A", "%"]
    assert next(row for row in rows if row[0] == "eval_loss") == [
        *("eval_loss", "2", "1.5", "-0.5", "-25.0", "4", "+2", "+100.0")
    ]


def test_runs_without_metrics_are_compared_too(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.resolved.yaml").write_text(f"name: {name}\n")
    runs = read_runs([str(tmp_path / "a"), str(tmp_path / "b")])
    show(runs)
    write_picture(runs, tmp_path / "c.svg")
    assert "inputs: not recorded" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "c.svg").read_text()


def test_the_plot_has_both_runs_curves(two, tmp_path, recwarn):
    write_picture(read_runs(two), tmp_path / "both.png")
    write_picture(read_runs([two[1], two[0]]), tmp_path / "swapped.png")
    with Image.open(tmp_path / "both.png") as both, Image.open(tmp_path / "swapped.png") as swapped:
        assert both.format == "PNG" and both.size == swapped.size
        for picture in (both, swapped):
            found = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
            assert {(31, 119, 180), (255, 127, 14)} <= found, "each run's colour"
        assert both.tobytes() != swapped.tobytes()
    assert not list(recwarn)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a/run"], "fewer than two runs"),
        (["a/run", "a/../a/run"], "twice"),
        (["a/run", "nowhere"], "no such directory"),
        (["a/run", "a"], "did you mean one of its jobs"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(two, tmp_path, names, says):
    with pytest.raises(UserError, match=says):
        read_runs([str(tmp_path / name) for name in names])


def test_only_image_file_names_are_accepted(tmp_path):
    assert check_picture(f"{tmp_path}/x.PDF") == tmp_path / "x.PDF"
    for name, says in (("notes.txt", "is not the name of a picture"), ("", "is a directory")):
        with pytest.raises(UserError, match=says):
            check_picture(f"{tmp_path}/{name}")


@pytest.mark.parametrize("given", ["runs=[1_0,2026-01-01_1,a b=c]", "runs=1_0,2026-01-01_1,a b=c"])
def test_runs_are_literal_text(given):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(quote_literal(given))
    assert [str(value.text) for value in parsed._value] == ["1_0", "2026-01-01_1", "a b=c"]
    assert quote_literal("runs=['a,b',c]") == "runs=['a,b',c]", "what is quoted already is Hydra's"


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2)), min_size=2, max_size=4))
def test_a_key_is_listed_if_the_tables_differ(tables):
    found = differing(tables)
    for key in "abcd":
        values = [each.get(key) for each in tables]
        assert (key in found) == (len(set(values)) > 1)
        assert found.get(key, values) == values


@given(st.lists(st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=4).map(tuple), min_size=2, unique=True))
def test_run_names_are_distinguishable(parts):
    paths = [Path("/", *each) for each in parts]
    names = distinct_names(paths)
    assert len(set(names)) == len(paths)
    assert all(str(path).endswith(name) for path, name in zip(paths, names, strict=True))


def test_trained_runs_are_ranked_and_compared(tmp_path, capsys):
    from sft.api import compose, train

    for number, rate in enumerate(("1e-4", "1e-2")):
        train(compose(*TINY, f"trainer.learning_rate={rate}", f"hydra.run.dir={tmp_path}/sweep/{number}_x"))
    board = write_leaderboard(tmp_path / "sweep")
    assert (board.sweep.keys, board.winner.name) == (["trainer.learning_rate"], "1_x")
    losses = [json.loads((tmp_path / f"sweep/{n}_x/metrics.json").read_text())["eval_loss"] for n in (0, 1)]
    assert [job.figures["eval_loss"] for job in board.ranked] == [losses[1], losses[0]]
    runs = read_runs([f"{tmp_path}/sweep/0_x", f"{tmp_path}/sweep/1_x"])
    assert differing([run.config for run in runs]) == {"trainer.learning_rate": [1e-4, 1e-2]}
    assert differing([run.facts for run in runs]) == {}, "the same versions, rows, tokenizer and template"
    rows = {row[0]: row[1:] for row in figures_table(runs)[1]}
    assert float(rows["eval_loss"][2]) == pytest.approx(losses[1] - losses[0], rel=1e-3)
    assert set(runs[0].curves) >= {"loss", "learning_rate", "grad_norm"}
