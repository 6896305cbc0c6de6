"""The run directory: its files by name, and the only way to write them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.config.paths import expanded
from sft.config.rank import is_main_process
from sft.run.disk import atomic
from sft.run.disk.errors import storage_errors
from sft.run.jsonable import dumps, lines_of, object_of, read_jsonl
from sft.safety.secrets import redact


class _Name:
    """A file or directory of the run, as a path."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunDirectory, owner: type | None = None) -> Path:
        return run.path / self.name


class RunDirectory:
    """One run's directory. Every write is atomic and free of secrets.

    Args:
        path: the directory; created with the first write.
        main: whether this process writes. None asks the environment: rank 0 of a torchrun job does; on the other
            ranks writing does nothing.
    """

    def __init__(self, path: str | os.PathLike[str], *, main: bool | None = None) -> None:
        self.path = expanded(path).absolute()
        self.main = is_main_process() if main is None else main

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    # -- names ---------------------------------------------------------------------------------------------------------
    config = _Name("config.resolved.yaml")
    run_json = _Name("run.json")
    training_info = _Name("training_info.json")
    train_log = _Name("train.log")
    metrics_jsonl = _Name("metrics.jsonl")
    metrics_json = _Name("metrics.json")
    data_report = _Name("data_report.json")
    preview_html = _Name("preview.html")
    curves_png = _Name("curves.png")
    samples_jsonl = _Name("samples.jsonl")
    generations_jsonl = _Name("generations.jsonl")
    tracker_json = _Name("tracker.json")
    checkpoints = _Name("checkpoints")
    adapter = _Name("adapter")
    model = _Name("model")
    merged = _Name("merged")
    evaluations = _Name("evaluations")
    lock_file = _Name(".lock")

    def inside(self, name: str | os.PathLike[str]) -> Path:
        """The absolute path of a file of this directory, named relative to it or by an absolute path inside it.

        Raises:
            UserError: the name leads out of the directory. (A symlink that the user put there may lead elsewhere.)
        """
        path = Path(os.path.normpath(self.path / name))
        if path == self.path or not path.is_relative_to(self.path):
            raise UserError(
                f"{os.fspath(name)!r} is not a file inside the run directory",
                where=str(self.path),
                remedy="give a plain name such as 'report.json', without '..'",
            )
        return path

    # -- writing -------------------------------------------------------------------------------------------------------
    def create(self) -> Path:
        """Create the directory (and its parents). Raises StorageError where that is not permitted."""
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        return self.path

    def write_json(self, name: str | os.PathLike[str], value: Any) -> Path:
        """Write a value as strict JSON (NaN and infinities as null)."""
        return self.write_text(name, dumps(value) + "\n")

    def write_text(self, name: str | os.PathLike[str], text: str) -> Path:
        """Write a UTF-8 text file."""
        return self.write_bytes(name, redact(text).encode("utf-8"))

    def write_bytes(self, name: str | os.PathLike[str], content: bytes) -> Path:
        """Write a binary file; nothing is redacted in it."""
        return self.write_with(name, lambda temporary: temporary.write_bytes(content))

    def write_with(self, name: str | os.PathLike[str], writer: Callable[[Path], object]) -> Path:
        """Let ``writer(path)`` write the file at a temporary path with the same suffix, then rename it."""
        path = self.inside(name)
        if self.main:
            with atomic.replacing(path) as temporary:
                writer(temporary)
        return path

    @contextmanager
    def replacing_directory(self, name: str | os.PathLike[str]) -> Iterator[Path]:
        """An empty temporary directory that becomes ``name`` when the block succeeds (for adapter/, model/, merged/).

        For the main process only: any other would overwrite its files.
        """
        with atomic.replacing_directory(self.inside(name)) as temporary:
            yield temporary

    def append_jsonl(self, name: str | os.PathLike[str], value: Any) -> Path:
        """Append one line to a JSON-lines file and flush it, so that it survives a kill."""
        path = self.inside(name)
        if self.main:
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "a", encoding="utf-8") as file:
                    file.write(dumps(value, indent=None) + "\n")
        return path

    def keep_jsonl(self, name: str | os.PathLike[str], keep: Callable[[dict[str, Any]], bool]) -> int:
        """Rewrite a JSON-lines file with the lines that ``keep`` accepts; incomplete lines are removed too.

        Returns:
            the number of removed lines.
        """
        path = self.inside(name)
        if not self.main or not path.exists():
            return 0
        lines = lines_of(path)
        kept = [line for line in lines if (value := object_of(line)) is not None and keep(value)]
        if len(kept) < len(lines):
            self.write_text(name, "".join(line + "\n" for line in kept))
        return len(lines) - len(kept)

    # -- reading -------------------------------------------------------------------------------------------------------
    def read_json(self, name: str | os.PathLike[str], default: Any = None) -> Any:
        """A JSON file's value, or ``default`` where there is none.

        Raises:
            UserError: the file exists but is not JSON.
        """
        path = self.inside(name)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(default, dict) and not isinstance(value, dict):
                raise ValueError("not a JSON object")
            return value
        except FileNotFoundError:
            return default
        except (ValueError, RecursionError) as error:
            what = "nested too deeply" if isinstance(error, RecursionError) else error
            raise UserError(
                f"is not valid JSON: {what}", where=str(path), remedy="restore the file or remove it"
            ) from error

    def read_jsonl(self, name: str | os.PathLike[str]) -> list[dict[str, Any]]:
        """The objects of a JSON-lines file in order, without incomplete lines; empty where there is no file."""
        path = self.inside(name)
        return read_jsonl(path) if path.exists() else []
