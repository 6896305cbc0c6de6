"""Whole directories: two writers of one output, and what a killed one left."""

import os
import subprocess
import sys

import pytest

from sft.run.disk.atomic import TEMPORARY, replacing_directory


def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_process_left_is_removed_and_that_of_a_living_one_stays(tmp_path):
    left, other = tmp_path / f"{TEMPORARY}{gone()}-out", tmp_path / f"{TEMPORARY}{os.getppid()}-out"
    foreign = tmp_path / f"{TEMPORARY}{gone()}-out2"
    for directory in (left, other, foreign):
        directory.mkdir()
        (directory / "part").write_text("x")
    with replacing_directory(tmp_path / "out") as beside:
        assert beside not in (left, other) and not list(beside.iterdir())
        (beside / "whole").write_text("y")
    assert not left.exists() and (other / "part").exists() and (foreign / "part").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]


def test_an_error_leaves_the_directory_as_it_was(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
    with pytest.raises(RuntimeError), replacing_directory(tmp_path / "out") as beside:
        (beside / "new").write_text("y")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
