"""Attacks through an untrusted run directory: no file is unpickled without a matching manifest, no path leaves the
directory."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft.config.errors import UserError
from sft.run import checkpoint
from sft.run.directory import RunDirectory
from sft.run.info import TrainingInfo
from sft.run.manifest import complete, problem
from sft.run.metrics import Metrics

DEEP = "[" * 100_000
PASSED_OVER = "it has no readable manifest.json"


class Owned:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch owned",))


def refused(action: Callable[[], object]) -> str:
    """What is told of an action."""
    try:
        found = action()
    except UserError as error:
        return str(error)
    return str(found)


def with_text(name: str, text: str, read: Callable[[RunDirectory], object]) -> Callable[[Path], str]:
    def attack(place: Path) -> str:
        (place / name).write_text(text)
        return refused(lambda: read(RunDirectory(place)))

    return attack


def manifest(files: dict[str, Any] | str) -> Callable[[Path], str]:
    """What is told of a checkpoint with a pickle and this manifest."""

    def attack(place: Path) -> str:
        directory = place / "checkpoint-1"
        directory.mkdir()
        (directory / "optimizer.pt").write_bytes(pickle.dumps(Owned()))
        text = files if isinstance(files, str) else json.dumps({"files": files})
        (directory / "manifest.json").write_text(text)
        return str(problem(directory))

    return attack


def vouched_pickle(place: Path) -> str:
    """A checkpoint whose manifest vouches for its pickle, opened as the trainer opens it."""
    import torch

    temporary = checkpoint.begin(place, 1)
    (temporary / "optimizer.pt").write_bytes(pickle.dumps(Owned()))
    found = checkpoint.commit(temporary)
    assert complete(found)
    with pytest.raises(pickle.UnpicklingError) as caught:
        torch.load(found / "optimizer.pt", map_location="cpu", weights_only=True)
    return str(caught.value)


def through_a_link(place: Path) -> str:
    """A run directory that is a link to itself."""
    (place / "run").symlink_to("run")
    return refused(lambda: RunDirectory(place / "run").create())


def inside(name: str) -> Callable[[Path], str]:
    return lambda place: refused(lambda: RunDirectory(place / "run").write_text(name, "x"))


def saved_conversation(place: Path) -> str:
    from sft.run.disk.errors import storage_errors

    def write() -> None:
        with storage_errors(place / "run.json" / "x"):
            (place / "run.json").mkdir()
            (place / "run.json" / "y").write_text("x")
            open(place / "run.json" / "y" / "z", "w").close()

    return refused(write)


FILE = {"optimizer.pt": {"sha256": "0" * 64, "bytes": 1}}
# What is tried: (a function that does it in a directory and gives what is told, what is told)
ATTACKS: dict[str, tuple[Callable[[Path], str], str]] = {
    "a pickle in a checkpoint without a manifest": (manifest("{}"), PASSED_OVER),
    "a pickle that the manifest does not vouch for": (manifest(FILE), "optimizer.pt has "),
    "a pickle that the manifest does vouch for": (vouched_pickle, "Weights only load failed"),
    "a manifest that leads out": (manifest({"../../x": {"sha256": "0", "bytes": 1}}), PASSED_OVER),
    "a manifest of an absolute path": (manifest({"/etc/passwd": {"sha256": "0", "bytes": 1}}), PASSED_OVER),
    "a manifest nested without end": (manifest(DEEP), PASSED_OVER),
    "a manifest whose sizes are texts": (manifest({"a": {"sha256": "0", "bytes": "x"}}), PASSED_OVER),
    "`run.json` nested without end": (
        with_text("run.json", DEEP, lambda run: run.read_json(run.run_json, {})),
        "is not valid JSON: nested too deeply",
    ),
    "`run.json` that is a list": (
        with_text("run.json", "[1]", lambda run: run.read_json(run.run_json, {})),
        "is not valid JSON: not a JSON object",
    ),
    "`training_info.json` cut off": (
        with_text("training_info.json", '{"model_name": ', TrainingInfo.read),
        "training_info.json: is not valid JSON",
    ),
    "`metrics.json` nested without end": (with_text("metrics.json", DEEP, Metrics.read), "nested too deeply"),
    "`metrics.jsonl` with a line nested without end": (
        with_text("metrics.jsonl", '{"step": 1}\n' + DEEP + "\n", lambda run: run.read_jsonl(run.metrics_jsonl)),
        "[{'step': 1}]",
    ),
    "a file name that leads out of the run directory": (inside("../x.json"), "is not a file inside the run directory"),
    "a file name that is a path": (inside("/tmp/x.json"), "is not a file inside the run directory"),
    "a run directory that is a link to itself": (through_a_link, "cannot write: something else has that name"),
    "a file where a directory should be": (saved_conversation, "a part of the path is a file, not a directory"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_each_hostile_run_directory_is_refused_with_its_reason(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attack, reason = ATTACKS[name]
    assert reason in attack(tmp_path)
    assert not (tmp_path / "owned").exists()
