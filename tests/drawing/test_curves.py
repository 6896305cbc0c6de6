"""curves.png."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from PIL import Image

from sft.drawing.curves import curves, write_curves
from sft.run.directory import RunDirectory

NAN = float("nan")


def test_curves_are_sorted_by_step_and_broken_at_what_is_no_number() -> None:
    found = curves(
        [
            {"step": 2, "loss": 1.0, "learning_rate": 0.1},
            {"step": 1, "loss": None, "grad_norm": NAN},
            {"step": 3, "loss": float("inf"), "eval_loss": 2, "eval_names_loss": "x", "eval_runtime": 3.0},
            {"loss": 5.0},
        ]
    )
    assert set(found) == {"loss", "learning_rate", "grad_norm", "eval_loss", "eval_names_loss"}
    steps, losses = found["loss"]
    assert steps == [1, 2, 3]
    assert math.isnan(losses[0])
    assert losses[1] == 1.0
    assert math.isnan(losses[2])
    assert found["eval_loss"] == ([3], [2.0])


HISTORIES = {
    "empty": [],
    "one point": [{"step": 1, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 1e-4}],
    "only nan": [{"step": step, "loss": NAN} for step in range(3)],
    "gaps": [{"step": step, "loss": NAN if step % 3 else 1.0, "grad_norm": 1e30} for step in range(9)],
    "several evaluations": [
        {"step": 1, "eval_loss": 1.0},
        {"step": 1, "eval_a_b_loss": 2.0},
        {"step": 2, "eval_a_b_loss": 1.0},
    ],
}


@pytest.mark.parametrize("name", HISTORIES)
def test_every_history_gives_a_picture(tmp_path: Path, name: str, recwarn: pytest.WarningsRecorder) -> None:
    run = RunDirectory(tmp_path / "$odd_name$")
    write_curves(run, HISTORIES[name])
    with Image.open(run.curves_png) as picture:
        assert picture.format == "PNG"
        assert picture.size[0] > 500
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 2  # something is drawn
    assert not list(recwarn)


def test_the_picture_shows_the_data(tmp_path: Path) -> None:
    """The training loss is drawn in matplotlib's first colour, and not at all where there is none."""
    run = RunDirectory(tmp_path / "run")
    for step in range(50):
        run.append_jsonl(run.metrics_jsonl, {"step": step, "loss": 2.0 - step / 50})
    blue = (31, 119, 180)

    def count() -> int:
        with Image.open(run.curves_png) as picture:
            return sum(n for n, colour in picture.convert("RGB").getcolors(1 << 24) or [] if colour == blue)

    write_curves(run)
    assert count() > 200
    write_curves(run, [])
    assert count() == 0


def test_no_global_state_of_matplotlib_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(
        sys.modules, "matplotlib.pyplot", raising=False
    )  # a library that another test loads may have it
    write_curves(RunDirectory(tmp_path / "run"), [{"step": 1, "loss": 1.0}])
    assert "matplotlib.pyplot" not in sys.modules
