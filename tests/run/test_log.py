"""train.log has everything, stderr a short form, and closing the log restores everything."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from sft.config.errors import UserError
from sft.run.directory import RunDirectory
from sft.run.log import FILE_ONLY, RunLog

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """Whatever a test does, logging is afterwards as it was."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level, warnings.showwarning)
    yield
    assert (list(root.handlers), root.level, warnings.showwarning) == before


def test_file_and_stderr_get_the_message_in_their_formats(run: RunDirectory, capsys: pytest.CaptureFixture) -> None:
    with RunLog(run):
        logging.getLogger("sft.data").info("read %d rows", 3)
        logging.getLogger("sft.data").warning("one is empty")
        logging.getLogger("sft.data").info("details", extra=FILE_ONLY)
        logging.getLogger("sft.data").debug("nobody wants this")
        logging.getLogger("some.library").info("in the file alone\nwith a second line")
        logging.getLogger("some.library").error("first line\nsecond line")
    text = run.train_log.read_text()
    assert "INFO    sft.data: read 3 rows" in text
    assert "WARNING sft.data: one is empty" in text
    assert "INFO    sft.data: details" in text
    assert "nobody" not in text
    assert "some.library: in the file alone\nwith a second line" in text
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" ", 1)[1] for line in err.splitlines()] == [
        "read 3 rows",
        "warning: one is empty",
        "error: some: first line … (the rest is in train.log)",
    ]


def test_import_messages_of_libraries_go_to_the_file(run: RunDirectory, capsys: pytest.CaptureFixture) -> None:
    with RunLog(run):
        library = logging.getLogger("bitsandbytes.backends.cpu.ops")
        library.warning("Failed to load CPU gemm_4bit_forward from %s", "somewhere")
        library.warning("something else failed")
    assert "gemm_4bit_forward from somewhere" in run.train_log.read_text()
    err = capsys.readouterr().err
    assert "gemm_4bit" not in err and "warning: bitsandbytes: something else failed" in err


def test_an_errors_traceback_is_only_in_the_file(run: RunDirectory, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError), RunLog(run):
        1 / 0  # noqa: B018
    with pytest.raises(UserError), RunLog(run):
        raise UserError("no such key", where="lora.rnak")
    text = run.train_log.read_text()
    assert "stopped by an error: division by zero\nTraceback" in text
    assert "ZeroDivisionError: division by zero" in text
    assert "refused: lora.rnak: no such key\nTraceback" in text
    assert capsys.readouterr().err == ""


def test_a_logged_exception_is_short_on_stderr(run: RunDirectory, capsys: pytest.CaptureFixture) -> None:
    with RunLog(run):
        try:
            raise KeyError("x")
        except KeyError:
            logging.getLogger("sft").exception("that failed")
    assert "Traceback" in run.train_log.read_text()
    assert capsys.readouterr().err.endswith(" error: that failed\n")


def test_warnings_go_through_the_log(run: RunDirectory, capsys: pytest.CaptureFixture) -> None:
    with RunLog(run), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # catch_warnings has put its own in place; a run has none around it
        logging.captureWarnings(True)
        warnings.warn("memory is short", UserWarning, stacklevel=1)
        warnings.warn("going away", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
        logging.captureWarnings(True)
    text = run.train_log.read_text()
    assert "UserWarning: memory is short" in text
    assert "DeprecationWarning: going away" in text
    err = capsys.readouterr().err
    assert "warning: memory is short" in err
    assert "going away" not in err


def test_secrets_are_hidden_in_both(
    run: RunDirectory, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "very-secret-value")
    with pytest.raises(RuntimeError), RunLog(run):
        logging.getLogger("sft").warning("sent %s", "very-secret-value")
        raise RuntimeError("refused very-secret-value")
    assert "very-secret-value" not in run.train_log.read_text() + capsys.readouterr().err


def test_each_job_has_its_own_log(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sweep, jobs = RunDirectory(tmp_path), [RunDirectory(tmp_path / name) for name in ("a", "b")]
    with RunLog(sweep):
        for job in jobs:
            with RunLog(job):
                logging.getLogger("sft").info("job %s", job.path.name)
    assert [job.train_log.read_text().split(": ")[1] for job in jobs] == ["job a\n", "job b\n"]
    assert sweep.train_log.read_text().count("job ") == 2
    assert len(capsys.readouterr().err.splitlines()) == 2  # the sweep's log does not say it once more


def test_a_resumed_run_adds_to_its_log(run: RunDirectory) -> None:
    for session in (1, 2):
        with RunLog(run):
            logging.getLogger("sft").info("session %d", session)
    assert [line.rpartition(": ")[2] for line in run.train_log.read_text().splitlines()] == ["session 1", "session 2"]


def test_other_ranks_write_no_file_and_prefix_their_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    run = RunDirectory(tmp_path / "run")
    with RunLog(run):
        logging.getLogger("sft").info("ordinary")
        logging.getLogger("sft").warning("alarming")
    assert not run.path.exists()
    assert [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()] == ["[rank 1] warning: alarming"]


def test_printing_handlers_are_removed_and_restored(run: RunDirectory, capsys: pytest.CaptureFixture) -> None:
    logger = logging.getLogger("a_library_that_prints")
    own, kept = logging.StreamHandler(sys.stderr), logging.StreamHandler(io.StringIO())
    logger.handlers, logger.propagate = [own, kept], False
    with RunLog(run):
        logger.warning("said once")
        assert own not in logger.handlers
        assert kept in logger.handlers
    assert capsys.readouterr().err.count("said once") == 1
    assert run.train_log.read_text().count("said once") == 1
    assert sorted(map(id, logger.handlers)) == sorted(map(id, [own, kept]))


LIBRARIES = """
import logging, sys
from sft.run.directory import RunDirectory
from sft.run.log import RunLog
run = RunDirectory(sys.argv[1])
with RunLog(run) as log:
    import transformers, datasets, wandb
    from transformers.utils import logging as hf
    hf.get_logger("transformers.trainer").warning("transformers warns")
    hf.get_logger("transformers.trainer").info("transformers informs")
    datasets.utils.logging.get_logger("datasets.load").warning("datasets warns")
    logging.getLogger("wandb").info("wandb informs")
    logging.getLogger("hydra.core").warning("hydra warns")
    assert not hf.is_progress_bar_enabled()
    assert datasets.are_progress_bars_disabled()
before = len(run.train_log.read_text())
hf.get_logger("transformers.trainer").warning("afterwards")
assert len(run.train_log.read_text()) == before
assert hf.is_progress_bar_enabled()
assert not datasets.are_progress_bars_disabled()
"""


def test_library_messages_appear_once_and_in_the_right_place(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("CI", None)
    command = [sys.executable, "-c", LIBRARIES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "train.log").read_text()
    for said in ("transformers warns", "transformers informs", "datasets warns", "wandb informs", "hydra warns"):
        assert text.count(said) == 1, said
    for said in ("transformers warns", "datasets warns", "hydra warns"):
        assert done.stderr.count(said) == 1, done.stderr
    assert "informs" not in done.stderr
    assert "[transformers] afterwards" in done.stderr  # its own handler is back
    assert done.stdout == ""


def test_a_bar_is_cleared_before_a_line_and_drawn_again(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    from tqdm import tqdm

    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with RunLog(run, progress_bars=True), tqdm(total=10, file=screen, ncols=40) as bar:
        bar.update(5)
        logging.getLogger("sft").info("a line of its own")
    lines = [part for line in screen.getvalue().split("\n") for part in line.split("\r")]
    assert any(part.endswith(" a line of its own") and "it/s" not in part for part in lines)


def test_a_live_display_and_a_log_line_do_not_mix(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console
    from rich.progress import Progress

    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with RunLog(run), Progress(console=Console(file=screen, force_terminal=True, width=60)) as progress:
        progress.add_task("train", total=10)
        progress.refresh()
        logging.getLogger("sft").info("above the bar [not markup]")
        progress.refresh()
    assert any(line.strip("\r").endswith("above the bar [not markup]") for line in screen.getvalue().split("\n"))
