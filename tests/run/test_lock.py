"""One writer per directory."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sft.config.errors import UserError
from sft.run.lock import RunLock, holder

ROOT = Path(__file__).resolve().parents[2]
HOLD = "from sft.run.lock import RunLock; import sys, time; lock = RunLock(sys.argv[1]).acquire(); print('held', flush=True); {}"


def hold(directory: Path, then: str = "time.sleep(60)") -> subprocess.Popen[str]:
    """A process that has taken the lock."""
    command = [sys.executable, "-c", HOLD.format(then), str(directory)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_second_run_is_refused_with_the_holder(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with pytest.raises(UserError) as caught:
            RunLock(tmp_path, patience=0).acquire()
        assert f"process {process.pid} on {socket.gethostname()}, since 20" in str(caught.value)
        assert "hydra.run.dir" in str(caught.value)
        found = holder(tmp_path)
        assert found is not None
        assert found["pid"] == process.pid
        assert process.poll() is None
    finally:
        end(process)


def test_a_killed_runs_lock_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = hold(tmp_path)
    end(process)
    assert (tmp_path / ".lock").exists()
    assert holder(tmp_path) is None
    with caplog.at_level("INFO"), RunLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert f"left by a dead run (process {process.pid}" in caplog.text
    assert not (tmp_path / ".lock").exists()


def test_an_orphan_of_a_killed_run_does_not_hold_the_lock(tmp_path: Path) -> None:
    """Data workers are forked after the lock is taken and may outlive a killed run."""
    process = hold(
        tmp_path, "import os; child = os.fork(); print(child, flush=True) if child else None; time.sleep(60)"
    )
    assert process.stdout is not None
    orphan = int(process.stdout.readline())
    try:
        end_parent_only(process)
        with RunLock(tmp_path):
            os.kill(orphan, 0)  # still there
    finally:
        os.kill(orphan, signal.SIGKILL)


def end_parent_only(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_finished_run_leaves_no_lock(tmp_path: Path) -> None:
    with RunLock(tmp_path / "new"):
        assert (tmp_path / "new" / ".lock").exists()
    assert list((tmp_path / "new").iterdir()) == []
    with RunLock(tmp_path / "new"):
        pass


def test_the_lock_also_works_within_one_process(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            RunLock(tmp_path, patience=0).acquire()
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            RunLock(tmp_path, patience=0).acquire()  # the refused one took nothing away


def test_only_rank_0_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunLock(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with RunLock(tmp_path) as other:
            assert other.descriptor is None
    assert holder(tmp_path) is None


def test_a_forked_child_does_not_release_the_lock(tmp_path: Path) -> None:
    process = hold(
        tmp_path,
        "import os; child = os.fork(); (child or lock.release()); os.write(1, b'%d\\n' % child); time.sleep(60)",
    )
    assert process.stdout is not None
    children = [int(process.stdout.readline()), int(process.stdout.readline())]
    try:
        with pytest.raises(UserError, match="another run"):
            RunLock(tmp_path, patience=0).acquire()
    finally:
        os.kill(max(children), signal.SIGKILL)
        end(process)


def _race(directory: str, wins: str) -> None:
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        try:
            with RunLock(directory, patience=0):
                descriptor = os.open(wins, os.O_CREAT | os.O_EXCL)  # two holders at once would collide here
                os.close(descriptor)
                os.unlink(wins)
        except UserError:
            pass


def test_the_lock_never_has_two_holders(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path), str(tmp_path / "win")]
    racers = [subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) for _ in range(3)]
    assert [racer.wait() for racer in racers] == [0, 0, 0]


if __name__ == "__main__":
    _race(sys.argv[1], sys.argv[2])
