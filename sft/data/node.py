"""The keys and values of a config node of the data: told what they are, and refused where nothing takes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sft.config.errors import UserError
from sft.config.text import did_you_mean


def refuse_unknown(node: Mapping[str, Any], schema: type, where: str) -> None:
    """Raise UserError for a key that is not one of the dataclass `schema`'s, with the nearest that is."""
    known = [item.name for item in fields(schema)]
    for key in node:
        if key in known or is_hydra_key(key):
            continue
        remedy = did_you_mean(str(key), known, f"its keys are {', '.join(known)}", prefix=f"{where}.", cutoff=0.5)
        raise UserError(f"unknown key {where}.{key}", where=where, remedy=remedy)


def is_hydra_key(key: object) -> bool:
    """Whether a key is Hydra's own (`_target_`, `_recursive_`, ...) and not an argument."""
    return isinstance(key, str) and key.startswith("_") and key.endswith("_")


def is_integer(value: object) -> bool:
    """Whether a value is a whole number (True and False are not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a number that is not NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
