"""Checkpoints are atomic."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sft.run import checkpoint
from sft.run.disk.errors import StorageError
from sft.run.manifest import complete, read_manifest

ROOT = Path(__file__).resolve().parents[2]


def save(checkpoints: Path, step: int, size: int = 1000) -> Path:
    with checkpoint.writing(checkpoints, step) as path:
        (path / "adapter_model.safetensors").write_bytes(bytes([step % 256]) * size)
        (path / "deep").mkdir()
        (path / "deep" / "state.json").write_text(json.dumps({"step": step}))
    return checkpoints / f"checkpoint-{step}"


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    for step in (5, 10, 100):
        save(tmp_path, step)
    return tmp_path


def test_a_saved_checkpoint_is_complete_and_named_by_its_step(checkpoints: Path) -> None:
    assert [p.name for p in checkpoint.listed(checkpoints)] == ["checkpoint-5", "checkpoint-10", "checkpoint-100"]
    assert sorted(p.name for p in checkpoints.iterdir()) == ["checkpoint-10", "checkpoint-100", "checkpoint-5"]
    assert all(complete(p) for p in checkpoint.listed(checkpoints))
    manifest = read_manifest(checkpoints / "checkpoint-10")
    assert manifest is not None
    assert manifest["step"] == 10
    assert set(manifest["files"]) == {"adapter_model.safetensors", "deep/state.json"}
    assert checkpoint.latest_good(checkpoints) == checkpoints / "checkpoint-100"


def test_a_checkpoint_is_absent_while_it_is_written(tmp_path: Path) -> None:
    with checkpoint.writing(tmp_path, 5) as path:
        (path / "x").write_text("x")
        assert checkpoint.listed(tmp_path) == []
        assert path.parent == tmp_path
    with pytest.raises(RuntimeError), checkpoint.writing(tmp_path, 10) as path:
        (path / "x").write_text("x")
        raise RuntimeError("the save failed")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-5"]


def cut(path: Path) -> None:
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def flip(path: Path) -> None:
    file = path / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    file.write_bytes(content)


def no_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def torn_manifest(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text()[:40])


def lost_file(path: Path) -> None:
    (path / "deep" / "state.json").unlink()


def smuggled_pickle(path: Path) -> None:
    (path / "optimizer.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")


def leads_out(path: Path) -> None:
    file = path / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"]["../checkpoint-5/deep/state.json"] = manifest["files"]["deep/state.json"]
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "has 100 bytes where 1000 were written"),
        (flip, "checksum"),
        (no_manifest, "no readable manifest"),
        (torn_manifest, "no readable manifest"),
        (lost_file, "deep/state.json is missing"),
        (smuggled_pickle, "optimizer.pt is not in its manifest"),
        (leads_out, "no readable manifest"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_for_the_previous_one(
    checkpoints: Path, damage, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(checkpoints / "checkpoint-100")
    assert checkpoint.latest_good(checkpoints) == checkpoints / "checkpoint-10"
    assert "checkpoint-100 is skipped" in caplog.text
    assert reason in caplog.text


def test_no_intact_checkpoint_is_reported(tmp_path: Path) -> None:
    assert checkpoint.latest_good(tmp_path / "absent") is None
    cut(save(tmp_path, 1))
    assert checkpoint.latest_good(tmp_path) is None


def test_the_limit_keeps_the_newest_and_the_best(checkpoints: Path) -> None:
    save(checkpoints, 200)
    removed = checkpoint.prune(checkpoints, 2, keep=[checkpoints / "checkpoint-5"])
    assert [p.name for p in removed] == ["checkpoint-10", "checkpoint-100"]
    assert [p.name for p in checkpoint.listed(checkpoints)] == ["checkpoint-5", "checkpoint-200"]


def test_the_last_good_one_is_never_deleted(checkpoints: Path) -> None:
    cut(checkpoints / "checkpoint-100")
    assert [p.name for p in checkpoint.prune(checkpoints, 1)] == ["checkpoint-100", "checkpoint-5"]
    assert [p.name for p in checkpoint.listed(checkpoints)] == ["checkpoint-10"]
    cut(checkpoints / "checkpoint-10")
    assert checkpoint.prune(checkpoints, 1) == []


@pytest.mark.parametrize("limit", [None, 0])
def test_no_limit_deletes_nothing(checkpoints: Path, limit: int | None) -> None:
    assert checkpoint.prune(checkpoints, limit) == []
    assert len(checkpoint.listed(checkpoints)) == 3


def test_saving_a_step_again_replaces_it(checkpoints: Path) -> None:
    with checkpoint.writing(checkpoints, 10) as path:
        (path / "other").write_text("new")
    assert sorted(p.name for p in (checkpoints / "checkpoint-10").iterdir()) == ["manifest.json", "other"]
    assert complete(checkpoints / "checkpoint-10")
    assert len(list(checkpoints.iterdir())) == 3


def test_a_kill_between_two_renames_loses_nothing(checkpoints: Path) -> None:
    """The old checkpoint-100 is moved away, the new one complete but still under its temporary name."""
    shutil.copytree(checkpoints / "checkpoint-100", checkpoints / ".tmp-checkpoint-100")
    (checkpoints / "checkpoint-100").rename(checkpoints / ".tmp-old-checkpoint-100")
    checkpoint.recover(checkpoints)
    assert [p.name for p in checkpoint.listed(checkpoints)] == ["checkpoint-5", "checkpoint-10", "checkpoint-100"]
    assert len(list(checkpoints.iterdir())) == 3


def test_partially_written_checkpoints_are_removed(checkpoints: Path) -> None:
    (checkpoints / ".tmp-checkpoint-300").mkdir()
    (checkpoints / ".tmp-checkpoint-300" / "part").write_text("x")
    (checkpoints / ".tmp-gone-checkpoint-1").mkdir()
    checkpoint.recover(checkpoints)
    assert len(list(checkpoints.iterdir())) == 3
    checkpoint.recover(checkpoints / "absent")


def test_several_ranks_write_one_checkpoint(tmp_path: Path) -> None:
    order: list[str] = []
    with checkpoint.writing(tmp_path, 3, main=True, barrier=lambda: order.append("main")) as path:
        (path / "rng_state_0.json").write_text("0")
        with checkpoint.writing(tmp_path, 3, main=False, barrier=lambda: order.append("other")) as same:
            assert same == path
            (same / "rng_state_1.json").write_text("1")
    assert order == ["main", "other", "other", "other", "main", "main"]
    manifest = read_manifest(tmp_path / "checkpoint-3")
    assert manifest is not None
    assert set(manifest["files"]) == {"rng_state_0.json", "rng_state_1.json"}


def test_a_full_disk_keeps_the_last_good_one(checkpoints: Path) -> None:
    with pytest.raises(StorageError, match="no space is left"), checkpoint.writing(checkpoints, 200) as path:
        (path / "x").write_text("x")
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert checkpoint.latest_good(checkpoints) == checkpoints / "checkpoint-100"
    assert len(list(checkpoints.iterdir())) == 3


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EDQUOT, "the disk quota is used up"),
    ],
)
def test_an_unwritable_directory_keeps_the_last_good_one(checkpoints: Path, number: int, says: str) -> None:
    with pytest.raises(StorageError, match=says), checkpoint.writing(checkpoints, 200) as path:
        (path / "x").write_text("x")
        raise OSError(number, os.strerror(number), str(path / "y"))
    assert checkpoint.latest_good(checkpoints) == checkpoints / "checkpoint-100"
    assert len(list(checkpoints.iterdir())) == 3


LOOP = """
import sys
from pathlib import Path
from sft.run import checkpoint
where = Path(sys.argv[1])
checkpoint.recover(where)
good = checkpoint.latest_good(where)
start = checkpoint.step_of(good) if good else 0
print(start, flush=True)
for step in range(start + 1, 100000):
    with checkpoint.writing(where, step) as path:
        for name in "abc":
            (path / name).write_bytes(step.to_bytes(4, "big") * 2000)
    checkpoint.prune(where, 2)
"""


def test_a_kill_at_any_moment_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    """A process that does nothing but save and prune is killed at moments spread over its work."""
    last = 0
    for round_ in range(8):
        command = [sys.executable, "-c", LOOP, str(tmp_path)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ})
        assert process.stdout is not None
        assert int(process.stdout.readline()) >= last
        time.sleep(0.05 + 0.013 * round_)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        good = checkpoint.latest_good(tmp_path)
        if good is not None:
            step = checkpoint.step_of(good)
            assert step is not None
            assert step >= last
            assert (good / "a").read_bytes() == step.to_bytes(4, "big") * 2000
            last = step
    assert last > 0
    checkpoint.recover(tmp_path)
    assert all(complete(path) for path in checkpoint.listed(tmp_path))
    assert not list(tmp_path.glob(".tmp-*"))
