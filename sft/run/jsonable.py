"""Values as strict JSON: no NaN, no tensor, no path object. JSON lines read again, torn ones left out."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.safety.secrets import redact_tree


def plain(value: Any) -> Any:
    """The value in terms of dict, list, str, int, float, bool and None.

    NaN and infinities become None, because JSON has no notation for them; numpy and torch scalars become numbers,
    dataclasses become dicts, anything else becomes its str().
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Mapping):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if value is None or isinstance(value, bool | str):
        return str(value) if isinstance(value, str) else value  # str() turns string enums into plain strings
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if callable(getattr(value, "tolist", None)):  # numpy and torch; for a scalar it returns the number itself
        return plain(value.tolist())
    return str(value)


def dumps(value: Any, *, indent: int | None = 2) -> str:
    """Strict JSON without secrets and without a final newline."""
    return json.dumps(redact_tree(plain(value)), indent=indent, ensure_ascii=False, allow_nan=False)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file in order, without torn lines."""
    return [value for line in lines_of(path) if (value := object_of(line)) is not None]


def lines_of(path: Path) -> list[str]:
    """The non-empty lines; split only at newlines, because text may contain other line separators."""
    return [line for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]


def object_of(line: str) -> dict[str, Any] | None:
    """The object that a line holds; None for a torn line, and for any other value."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
