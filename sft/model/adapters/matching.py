"""How names match modules and parameters in peft, and the error for names that match none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sft.config.errors import UserError

_SHOWN = 12  # names listed in an error


def matching(names: Iterable[str], ends: Iterable[str]) -> list[str]:
    """Names that equal one of `ends`, or end with one after a dot."""
    ends = list(ends)
    return [name for name in names if any(name == end or name.endswith(f".{end}") for end in ends)]


def listed(value: Any) -> list[str]:
    """A list of names; [] for a single expression, which is matched differently."""
    return list(value) if isinstance(value, list | tuple | set) else []


def last_parts(modules: Iterable[str]) -> set[str]:
    """What modules are called by themselves, without the path to them and without numbers."""
    return {last for name in modules if not (last := name.rpartition(".")[2]).isdigit()}


def some_of(names: Iterable[str]) -> str:
    """The first names for an error's remedy."""
    known = sorted(names)
    return ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")


def nothing_matches(
    key: str, names: Sequence[str], there: Iterable[str], what: str = "no module is called"
) -> UserError:
    """The error for names of a `lora` key that match nothing, with some of those that are there."""
    return UserError(f"{what} {', '.join(names)}", where=f"lora.{key}", remedy=f"some of {some_of(there)}")
