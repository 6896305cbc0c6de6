"""Regular expressions that a config or an adapter brings, looked at before peft tries them on every module's name."""

from __future__ import annotations

import re
from re import _parser  # type: ignore[attr-defined]
from typing import Any

MOST_WILDCARDS = 5  # each more multiplies the tries on a name that does not match
_MANY = 50  # repetitions that count as a wildcard


def wrong_pattern(pattern: str) -> str | None:
    """What is wrong with a regular expression for modules' names, in words; None where nothing is.

    Python's matching has no time limit: a repeat within a repeat, or many of them, may try for years.
    """
    try:
        parsed = _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is no regular expression: {error}"
    count, nested = _repeats(parsed, 0)
    if nested:
        return "repeats what repeats itself, which may never end"
    return f"has {count} wildcards, and {MOST_WILDCARDS} are the most" if count > MOST_WILDCARDS else None


def _repeats(node: Any, depth: int) -> tuple[int, bool]:
    """(wildcards, whether one lies within another) of a parsed expression."""
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
