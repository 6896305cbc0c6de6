"""Saved conversations: files with one JSON object each, which `dataset.path` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.config.paths import expanded
from sft.data.formats.errors import RowError
from sft.data.formats.messages import messages_of
from sft.run.disk.atomic import replacing
from sft.run.jsonable import dumps

Message = dict[str, Any]


class SavedConversations:
    """The conversations in one directory, which is created with the first.

    Args:
        directory: where they are.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = expanded(directory).absolute()

    def names(self) -> list[str]:
        """File names, the newest first."""
        if not self.directory.is_dir():
            return []
        files = [path for path in self.directory.glob("*.json") if path.is_file() and not path.name.startswith(".")]
        return [path.name for path in sorted(files, key=lambda path: (path.stat().st_mtime, path.name), reverse=True)]

    def write(
        self, messages: Sequence[Message], model: str, base: Sequence[Message] = (), path: Path | None = None
    ) -> Path:
        """Write a conversation.

        Args:
            messages: with the system prompt first, where there is one.
            model: the name of the model.
            base: the same questions with the base's answers, for a separate column that training ignores.
            path: the file in which it was saved before, None for a new one.

        Raises:
            StorageError: it cannot be written.
        """
        row: dict[str, Any] = {"messages": list(messages), "model": model}
        if base:
            row["base_messages"] = list(base)
        path = path or self._free(model)
        with replacing(path) as temporary:
            temporary.write_text(dumps(row) + "\n", encoding="utf-8")
        return path

    def read(self, name: str) -> list[Message]:
        """The conversation in a file: role, content, and `train` where it is false.

        Raises:
            UserError: there is no such file, or it is not a conversation of texts.
        """
        if name not in self.names():
            raise UserError("there is no such conversation", remedy="select one from the list")
        try:
            row = json.loads((self.directory / name).read_text(encoding="utf-8"))
            messages = messages_of(row["messages"], "column messages")
        except (OSError, ValueError, KeyError, TypeError, RowError):
            raise UserError("is not a conversation of this page", where=name) from None
        if any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
            raise UserError("has tool calls, which this page does not support", where=name)
        return [{key: message[key] for key in ("role", "content", "train") if key in message} for message in messages]

    def _free(self, model: str) -> Path:
        """An unused file name: the model and the time."""
        plain = re.sub(r"[^\w.-]+", "_", model, flags=re.ASCII).strip("._")[-80:] or "conversation"
        stem = f"{plain}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
        path, number = self.directory / f"{stem}.json", 1
        while path.exists():
            number += 1
            path = self.directory / f"{stem}-{number}.json"
        return path
