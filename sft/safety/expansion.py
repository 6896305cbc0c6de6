"""Counting interpolations before they are resolved: ten lines that each use the previous one ten times would never
end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sft.config.errors import UserError

MOST = 1_000_000  # limit of interpolations and characters for one value
_REFERENCE = re.compile(r"\$\{\s*(\.*)([\w.\[\]/-]+)\s*(?::-[^}]*)?\}")


def endless(config: Mapping[str, Any]) -> UserError | None:
    """The error for the first value whose interpolations expand beyond the limit, or None.

    Args:
        config: plain containers, interpolations not resolved.
    """
    values = dict(_leaves(config, ""))
    below: dict[str, list[str]] = {}
    for path in values:
        parts = path.split(".")
        for length in range(len(parts)):
            below.setdefault(".".join(parts[:length]), []).append(path)
    known: dict[str, int] = {}
    for path in values:
        if _cost(path, values, below, known) > MOST:
            return UserError(
                f"its interpolations expand to more than {MOST:,} characters or values",
                where=path[:100],
                remedy="write the value itself",
            )
    return None


def _leaves(node: Any, path: str) -> list[tuple[str, str]]:
    """(dotted path, text) of every value."""
    if isinstance(node, Mapping):
        return [leaf for key, value in node.items() for leaf in _leaves(value, f"{path}.{key}" if path else str(key))]
    if isinstance(node, list):
        return [leaf for index, value in enumerate(node) for leaf in _leaves(value, f"{path}.{index}")]
    return [(path, node if isinstance(node, str) else "")]


def _cost(path: str, values: dict[str, str], below: dict[str, list[str]], known: dict[str, int]) -> int:
    """Characters and interpolations to which a path expands; a recursive path ends where it repeats."""
    if path in known:
        return known[path]
    known[path] = 1  # OmegaConf reports recursion itself
    if path in values:
        text, total = values[path], 1 + len(values[path])
        for dots, name in _REFERENCE.findall(text):
            total += _cost(_absolute(path, dots, name), values, below, known)
    else:
        total = 1 + sum(_cost(each, values, below, known) for each in below.get(path, []))
    known[path] = min(total, MOST + 1)
    return known[path]


def _absolute(path: str, dots: str, name: str) -> str:
    """The absolute path of a reference: `${.x}` is a sibling of the value, `${..x}` a sibling of its parent."""
    name = name.replace("[", ".").replace("]", "").strip(".")
    if not dots:
        return name
    home = path.split(".")[: -len(dots)]
    return ".".join([*home, name])
