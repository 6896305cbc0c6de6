"""Fixtures of the attacks: the tiny model's directory, and copies of it to corrupt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The directory of the tiny model."""
    from sft.model.sources.tiny import locate_tiny

    return Path(locate_tiny("llama"))


@pytest.fixture
def tiny_tokenizer(tiny: Path) -> Any:
    """The tiny model's tokenizer, which may be changed."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture
def broken_model(tiny: Path, tmp_path: Path):
    """A copy of the tiny model, with files replaced (None: removed) and keys of its JSON files changed."""

    def copy(files: dict[str, bytes | None], keys: dict[str, dict[str, Any]]) -> Path:
        directory = Path(shutil.copytree(tiny, tmp_path / "model"))
        for name, content in files.items():
            (directory / name).unlink(missing_ok=True) if content is None else (directory / name).write_bytes(content)
        for name, changes in keys.items():
            value = json.loads((directory / name).read_text())
            (directory / name).write_text(json.dumps({**value, **changes}))
        return directory

    return copy
