"""The run directory: atomic writes, strict JSON, no path traversal."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.config.errors import UserError
from sft.run.directory import RunDirectory
from sft.run.disk.errors import StorageError

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def test_every_documented_file_has_a_path(run: RunDirectory) -> None:
    names = {
        "config": "config.resolved.yaml",
        "run_json": "run.json",
        "training_info": "training_info.json",
        "train_log": "train.log",
        "metrics_jsonl": "metrics.jsonl",
        "metrics_json": "metrics.json",
        "data_report": "data_report.json",
        "preview_html": "preview.html",
        "curves_png": "curves.png",
        "checkpoints": "checkpoints",
        "adapter": "adapter",
        "model": "model",
        "merged": "merged",
    }
    assert {name: getattr(run, name).relative_to(run.path).as_posix() for name in names} == names


def test_nothing_is_created_before_the_first_write(run: RunDirectory) -> None:
    assert not run.path.exists()
    run.write_text("note.txt", "x")
    assert [p.name for p in run.path.iterdir()] == ["note.txt"]


@given(st.dictionaries(st.text(), LEAVES | st.lists(LEAVES)))
def test_what_is_written_is_read_back(tmp_path_factory, value: dict) -> None:
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    value = {key: item for key, item in value.items() if "token" not in key and "password" not in key}
    run.write_json("x.json", value)
    assert run.read_json("x.json") == value
    run.append_jsonl("x.jsonl", value)
    run.append_jsonl("x.jsonl", value)
    assert run.read_jsonl("x.jsonl") == [value, value]


def test_json_is_strict_and_accepts_numpy_numbers(run: RunDirectory) -> None:
    run.write_json(
        "x.json", {"nan": float("nan"), "inf": [float("inf")], "np": numpy.float32(0.5), "p": Path("a"), "s": {2, 1}}
    )
    text = (run.path / "x.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "inf": [None],
        "np": 0.5,
        "p": "a",
        "s": [1, 2],
    }


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", ".", "", "a/../.."])
def test_path_traversal_is_refused(run: RunDirectory, name: str) -> None:
    with pytest.raises(UserError, match="not a file inside"):
        run.write_text(name, "x")
    assert not run.path.parent.joinpath("x").exists()


def test_names_inside_may_be_deep_or_absolute(run: RunDirectory) -> None:
    assert run.write_text("a/b/c.txt", "x").read_text() == "x"
    assert run.write_text(run.path / "d.txt", "y").read_text() == "y"
    assert run.inside("a/../d.txt") == run.path / "d.txt"


def test_a_failing_write_keeps_the_old_file_and_leaves_no_other(run: RunDirectory) -> None:
    run.write_text("x.txt", "old")

    def half(path: Path) -> None:
        path.write_text("ne")
        raise RuntimeError("stopped half way")

    with pytest.raises(RuntimeError, match="half way"):
        run.write_with("x.txt", half)
    assert [p.name for p in run.path.iterdir()] == ["x.txt"]
    assert (run.path / "x.txt").read_text() == "old"


def test_a_directory_is_replaced_atomically(run: RunDirectory) -> None:
    with run.replacing_directory("adapter") as new:
        (new / "a").write_text("1")
    with pytest.raises(RuntimeError), run.replacing_directory("adapter") as new:
        (new / "b").write_text("2")
        raise RuntimeError
    assert [p.name for p in run.adapter.iterdir()] == ["a"]
    with run.replacing_directory("adapter") as new:
        (new / "c").write_text("3")
    assert [p.name for p in run.adapter.iterdir()] == ["c"]
    assert [p.name for p in run.path.iterdir()] == ["adapter"]


def test_what_a_replaced_link_leads_to_is_kept(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_text("1")
    run.create()
    run.adapter.symlink_to(tmp_path / "elsewhere")
    with run.replacing_directory("adapter") as new:
        (new / "b").write_text("2")
    assert [p.name for p in run.adapter.iterdir()] == ["b"] and not run.adapter.is_symlink()
    assert [p.name for p in run.path.iterdir()] == ["adapter"]
    assert (tmp_path / "elsewhere" / "a").read_text() == "1"


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    run = RunDirectory(tmp_path / "run")
    run.write_json("x.json", 1)
    run.append_jsonl("x.jsonl", {})
    assert not run.path.exists()


def test_incomplete_lines_are_skipped_and_dropped_lines_counted(run: RunDirectory) -> None:
    for step in range(5):
        run.append_jsonl("m.jsonl", {"step": step, "text": "line\u2028separator"})
    with open(run.path / "m.jsonl", "a") as file:
        file.write('{"step": 5, "te')
    assert [line["step"] for line in run.read_jsonl("m.jsonl")] == [0, 1, 2, 3, 4]
    assert run.keep_jsonl("m.jsonl", lambda line: line["step"] <= 2) == 3
    assert [line["step"] for line in run.read_jsonl("m.jsonl")] == [0, 1, 2]
    assert run.keep_jsonl("missing.jsonl", lambda line: True) == 0


def test_a_broken_json_file_is_reported(run: RunDirectory) -> None:
    run.write_text("x.json", "{")
    with pytest.raises(UserError, match=r"x\.json.*not valid JSON"):
        run.read_json("x.json")
    assert run.read_json("absent.json", 7) == 7


def test_a_file_in_place_of_a_directory_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises((StorageError, FileExistsError)):
        RunDirectory(tmp_path / "run" / "deeper").create()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left"),
        (OSError(errno.EROFS, "Read-only file system"), "read-only"),
        (PermissionError(errno.EACCES, "Permission denied"), "permission denied"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space is left"),
    ],
)
def test_file_system_errors_are_one_clear_line(run: RunDirectory, error: Exception, said: str) -> None:
    def refuse(path: Path) -> None:
        raise error

    with pytest.raises(StorageError, match=said) as caught:
        run.write_with("x.txt", refuse)
    assert caught.value.remedy


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """A file-size limit stands in for the full disk: the write fails half way, for real."""
    code = (
        "import resource, sys, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from sft.run.directory import RunDirectory\n"
        "from sft.run.disk.errors import StorageError\n"
        f"run = RunDirectory({str(tmp_path / 'run')!r})\n"
        "run.write_text('x.txt', 'old')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    run.write_text('x.txt', 'n' * 100000)\n"
        "except StorageError as error: print(error)\n"
        "print(open(run.path / 'x.txt').read(), sorted(p.name for p in run.path.iterdir()))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert "cannot write" in done.stdout
    assert done.stdout.strip().endswith("old ['x.txt']")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


def test_a_directory_without_permission_is_refused_in_one_line(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):  # root may write anywhere: the kernel has nothing to refuse
        assert RunDirectory(closed / "run").create().is_dir()
        return
    with pytest.raises(StorageError, match="permission denied"):
        RunDirectory(closed / "run").create()
