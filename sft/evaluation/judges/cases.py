"""What is judged: an answer with its conversation; and test data with one or several turns, from JSONL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sft.config.errors import UserError
from sft.config.paths import expanded


@dataclass(frozen=True)
class Case:
    """One answer to judge.

    Attributes:
        messages: the turns before it.
        answer: the model's answer.
        reference: the expected answer; None where it is not known.
        context: facts that the answer should agree with.
    """

    messages: list[dict[str, Any]]
    answer: str
    reference: str | None = None
    context: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Test:
    """A conversation to replay; its assistant turns are the references.

    Attributes:
        messages: all turns; one whose last is the user's has no reference for the answer to it.
        context: facts for all turns.
    """

    __test__ = False  # keeps pytest from collecting the class

    messages: list[dict[str, Any]]
    context: list[str] = field(default_factory=list)


def sample_data(name: Literal["single_turn", "multi_turn"]) -> Path:
    """The path of the test data that comes with sft."""
    return Path(__file__).parent / "data" / f"{name}.jsonl"


def read_tests(path: str | Path) -> list[Test]:
    """Read test data: a JSON object a line, `{"messages": [...]}` or `{"prompt": ..., "reference": ...}`.

    Both may have `context`, a text or a list of texts.

    Raises:
        UserError: all errors of the file, each with its row.
    """
    file = expanded(path)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(file)) from None
    tests, faults = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                tests.append(make_test(json.loads(line)))
            except ValueError as error:
                faults.append(UserError(str(error), where=f"{file.name} row {number}"))
    if faults:
        shown = "\n  ".join(f"{fault.where}: {fault.what}" for fault in faults[:5])
        raise UserError(f"{len(faults)} of {len(lines)} rows are broken\n  {shown}", where=str(file))
    if not tests:
        raise UserError("it has no rows", where=str(file))
    return tests


def make_test(row: Any) -> Test:
    """A row as a test.

    Raises:
        ValueError: it has neither of the two forms.
    """
    if not isinstance(row, Mapping):
        raise ValueError("no JSON object")
    context = row.get("context") or []
    context = [context] if isinstance(context, str) else list(context)
    if "messages" not in row:
        if not isinstance(row.get("prompt"), str):
            raise ValueError("neither messages nor a prompt")
        messages = [{"role": "user", "content": row["prompt"]}]
        if row.get("reference") is not None:
            messages.append({"role": "assistant", "content": str(row["reference"])})
        return Test(messages, context)
    messages = list(row["messages"]) if isinstance(row["messages"], list) else []
    if not all(isinstance(message, Mapping) and isinstance(message.get("role"), str) for message in messages):
        raise ValueError("messages is not a list of {role, content}")
    if not any(message["role"] == "user" for message in messages):
        raise ValueError("no user turn")
    return Test([dict(message) for message in messages], context)
