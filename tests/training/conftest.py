"""Runs of a tiny model on a few tickets: a second or two each."""

from pathlib import Path

import pytest

from tests.runs import run_in

__all__ = ["run_in"]


@pytest.fixture(autouse=True, scope="module")
def empty_pictures():
    """curves.png and lengths.png are empty files: drawing them takes as long as the few steps of a run here.

    What is in them is for tests/drawing/test_curves.py and tests/data/report/test_length.py, that a run draws them for
    tests/test_commands.py.
    """
    from sft.data.report import length
    from sft.drawing import curves as plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_draw", lambda history, title, path: Path(path).write_bytes(b""))
        patch.setattr(length, "_picture", lambda *_: b"")
        yield


@pytest.fixture
def run(tmp_path, run_in):
    """Overrides -> a finished run's Result; `to` names its directory."""

    def start(*overrides: str, to: str = "run", **kwargs):
        return run_in(tmp_path / to, *overrides, **kwargs)

    return start


@pytest.fixture(scope="session")
def faults():
    """Overrides -> {key: message} of what is wrong with a training's config."""
    from sft.config.compose import compose_job, config_loader

    loader = config_loader()

    def found(*overrides: str) -> dict[str, str]:
        errors = compose_job(loader, "train", list(overrides), "train").errors
        return {str(error.where): f"{error.what} -> {error.remedy}" for error in errors}

    return found
