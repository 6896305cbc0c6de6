"""Unified diffs: which files they change, and what those lines were before."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,\d+)? @@")


@dataclass
class FileChange:
    """One file of a diff.

    Attributes:
        path: its path before the change; for a new file, after it.
        is_new: whether the change makes the file.
        hunks: for each hunk the number of its first line, and the lines it shows as they were before.
    """

    path: str
    is_new: bool = False
    hunks: list[tuple[int, list[str]]] = field(default_factory=list)

    def before(self) -> str:
        """The lines that the diff shows, as they were, each piece preceded by a line that says where it begins."""
        return "\n".join(f"@ line {start}\n" + "\n".join(lines) for start, lines in self.hunks if lines)


def changes_of(diff: str) -> list[FileChange]:
    """The files a unified diff changes, in its order; empty for a text that is not a diff."""
    changes: list[FileChange] = []
    old: str | None = None
    left = 0  # remaining lines of the hunk, counted as before the change
    for line in diff.split("\n"):
        if left > 0 and line[:1] in (" ", "-", ""):
            changes[-1].hunks[-1][1].append(line[1:])
            left -= 1
        elif left > 0 and line[:1] in ("+", "\\"):
            continue
        elif line.startswith("--- "):
            old = _path(line[4:])
        elif line.startswith("+++ ") and old is not None:
            new = _path(line[4:])
            changes.append(FileChange(new if old == "/dev/null" else old, is_new=old == "/dev/null"))
            old = None
        elif (hunk := _HUNK.match(line)) and changes:
            left = int(hunk[2]) if hunk[2] is not None else 1
            changes[-1].hunks.append((int(hunk[1]), []))
    return changes


def _path(name: str) -> str:
    """The path in a diff's header, without a/ or b/, quotes and the time stamp that some tools add."""
    name = name.split("\t")[0].strip().strip('"')
    return name[2:] if name.startswith(("a/", "b/")) else name
