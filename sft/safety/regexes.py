"""Checks of regular expressions in configs and adapters, before peft matches them against every module name."""

from __future__ import annotations

import re
from re import _parser  # type: ignore[attr-defined]
from typing import Any

MOST_WILDCARDS = 5  # each one multiplies the matching time of a name that does not match
_MANY = 50  # repetitions that count as a wildcard


def wrong_pattern(pattern: str) -> str | None:
    """What is wrong with a regular expression for module names, as text; None where it is fine.

    Python's matching has no time limit: nested repeats, or many of them, may run for years.
    """
    try:
        parsed = _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is not a regular expression: {error}"
    count, nested = _repeats(parsed, 0)
    if nested:
        return "has nested repeats, whose matching may never end"
    return f"has {count} wildcards; at most {MOST_WILDCARDS} are allowed" if count > MOST_WILDCARDS else None


def _repeats(node: Any, depth: int) -> tuple[int, bool]:
    """(wildcards, whether they are nested) of a parsed expression."""
    count, nested = 0, False
    for part in node if isinstance(node, list | tuple | _parser.SubPattern) else ():
        if not isinstance(part, tuple | list | _parser.SubPattern):
            continue
        below = depth
        if isinstance(part, tuple) and str(part[0]) in ("MAX_REPEAT", "MIN_REPEAT") and int(part[1][1]) > _MANY:
            count, nested, below = count + 1, nested or depth > 0, depth + 1
        inner, within = _repeats(part, below)
        count, nested = count + inner, nested or within
    return count, nested
