"""Code-repair records to training rows: a problem and the patch that fixes it.

Two schemas are read: SWE-bench's flat one (instance_id, repo, base_commit, problem_statement, patch) and SWE-Synth's
nested one ({source: {repo, base_commit, swe_instance_id}, bug: {problem_statement}, original: {gold_patch}}).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sft.data.makers.diffs import FileChange, changes_of
from sft.data.makers.made import MakerResult
from sft.data.readers.rows import Broken, Rows, Where

Mode = Literal["simple", "code_context"]
Context = Literal["auto", "file", "diff"]

SYSTEM = "You mend bugs in a code base. Answer with a patch in unified diff format that can be applied with git apply."
_PATCHES = ("gold_patch", "patch", "fix_patch")
_FILES = ("files", "file_contents", "code", "oracle_files")


class _Unfit(ValueError):
    """Why a record gives no row."""


@dataclass(frozen=True)
class _Task:
    instance_id: str
    task_id: str | int
    repo: str
    problem: str
    patch: str
    changes: list[FileChange]
    files: dict[str, str]


def swe_synth(rows: Rows) -> Iterator[MakerResult]:
    """Instruction and response: the problem statement, and the patch verbatim."""
    for where, row in rows:
        try:
            task = _task(row, where)
        except _Unfit as error:
            yield MakerResult(None, reason=str(error), where=where)
            continue
        record = {"instruction": task.problem, "response": task.patch}
        yield MakerResult({**record, "instance_id": task.instance_id, "task_id": task.task_id})


def swe(rows: Rows, *, mode: Mode = "simple", context: Context = "auto") -> Iterator[MakerResult]:
    """Messages: the problem, which files the change belongs in, and the patch.

    Args:
        rows: the records.
        mode: `simple` shows no code; `code_context` shows the files, or the lines around the change, as they were.
        context: where the code comes from: `file` (the record's own `files`: {path: content}), `diff` (the lines that
            the patch shows as they were), `auto` (files where the record has them, else the diff).
    """
    for where, row in rows:
        try:
            task = _task(row, where)
            messages = _messages(task, mode, context)
        except _Unfit as error:
            yield MakerResult(None, reason=str(error), where=where)
            continue
        yield MakerResult({"instance_id": task.instance_id, "task_id": task.task_id, "messages": messages})


def _task(row: Any, where: Where) -> _Task:
    if isinstance(row, Broken):
        raise _Unfit(row.kind)
    parts = [part for key in ("bug", "source", "original") if isinstance(part := row.get(key), Mapping)]
    parts.append(row)
    problem = _first(parts, ("problem_statement",)).strip()
    if len(problem) > 1 and problem[0] == problem[-1] == '"':
        problem = problem[1:-1].strip()
    patch = _first(parts, _PATCHES).strip("\n")
    if not problem:
        raise _Unfit("no problem_statement")
    if not patch.strip():
        raise _Unfit("no patch")
    changes = changes_of(patch)
    if not changes:
        raise _Unfit("the patch is not a unified diff")
    instance = _first(parts, ("swe_instance_id", "instance_id")) or str(row.get("task_id") or where)
    files: Mapping[Any, Any] = next((row[key] for key in _FILES if isinstance(row.get(key), Mapping)), {})
    contents = {str(path): text for path, text in files.items() if isinstance(text, str)}
    task_id = _task_id(row, where, instance)
    return _Task(instance, task_id, _first(parts, ("repo",)), problem, patch + "\n", changes, contents)


def _first(parts: list[Any], names: tuple[str, ...]) -> str:
    """The first text under one of these names."""
    for part in parts:
        for name in names:
            if isinstance(part.get(name), str) and part[name].strip():
                return part[name]
    return ""


def _task_id(row: Mapping[str, Any], where: Where, instance: str) -> str | int:
    """The record's own id, or the number in the name of its file (task_00000000017.json), or its instance's id."""
    own = row.get("task_id")
    if isinstance(own, (str, int)) and own != "":
        return own
    match = re.search(r"task_(\d+)\.json", where.file)
    return int(match[1]) if match else instance


def _messages(task: _Task, mode: Mode, context: Context) -> list[dict[str, str]]:
    about = f"Repository: {task.repo}\n\n{task.problem}" if task.repo else task.problem
    paths = "\n".join(f"- {change.path}{' (new)' if change.is_new else ''}" for change in task.changes)
    if mode == "code_context":
        second = f"This is the code before the change:\n\n{_code(task, context)}\n\nWrite the patch."
    else:
        second = "Write the patch."
    turns = [
        ("system", SYSTEM),
        ("user", f"{about}\n\nWhich files does the change belong in?"),
        ("assistant", paths),
        ("user", second),
        ("assistant", f"```diff\n{task.patch}```"),
    ]
    return [{"role": role, "content": content} for role, content in turns]


def _code(task: _Task, context: Context) -> str:
    shown = []
    for change in task.changes:
        if change.is_new:
            continue
        if context != "diff" and change.path in task.files:
            code = task.files[change.path].rstrip("\n")
        elif context == "file":
            raise _Unfit("no file contents in the record")
        else:
            code = change.before()
        if code:
            shown.append(f"### {change.path}\n{_fenced(code)}")
    if not shown:
        raise _Unfit("no code before the change: it only makes new files")
    return "\n\n".join(shown)


def _fenced(code: str) -> str:
    """A code block whose fence is longer than any in the code."""
    longest = max((len(run) for run in re.findall(r"^`{3,}", code, re.MULTILINE)), default=2)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{code}\n{fence}"
