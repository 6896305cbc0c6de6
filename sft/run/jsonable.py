"""Values as strict JSON: no NaN, no tensor, no path object."""

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

    NaN and the infinities become None, for JSON has no word for them; numpy and torch scalars become numbers;
    dataclasses become dicts; whatever else is left becomes its text.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
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
    if callable(getattr(value, "tolist", None)):  # numpy and torch; a scalar's is the number itself
        return plain(value.tolist())
    return str(value)


def dumps(value: Any, *, indent: int | None = 2) -> str:
    """Strict JSON without secrets, ending in no newline."""
    return json.dumps(redact_tree(plain(value)), indent=indent, ensure_ascii=False, allow_nan=False)
