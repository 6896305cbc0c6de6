"""Checks of a model's files before the libraries read them: unrealistic sizes, which they would allocate."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft.config.errors import UserError

# of numbers in a config.json: (least, most)
RANGES = {
    "num_hidden_layers": (1, 2_000),
    "n_layer": (1, 2_000),
    "num_attention_heads": (1, 100_000),
    "num_key_value_heads": (1, 100_000),
    "hidden_size": (1, 1_000_000),
    "num_labels": (0, 100_000),
}
MOST_GROWTH = 10_000  # expansion of one character by a tokenizer's replacements


def check_sizes(name: str) -> None:
    """Refuse a local model with unrealistic sizes in its config.json or tokenizer.json.

    Raises:
        UserError: the key and its value. Files that are not JSON are left to their reader.
    """
    if not Path(name).is_dir():
        return
    path = Path(name) / "config.json"
    for key, value in _numbers(_read(path)):
        least, most = RANGES[key]
        if not least <= value <= most:
            shown = str(value) if abs(value) < 10**12 else "a number of more than 12 digits"
            raise UserError(
                f"{key} is {shown}, and no model has that", where=str(path), remedy=f"{least:,} to {most:,}"
            )
    path = Path(name) / "tokenizer.json"
    text = path.read_bytes() if path.is_file() else b""
    if b'"Replace"' in text:
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            tokenizer = _read(path)
            if isinstance(tokenizer, dict) and _growth(tokenizer.get(part)) > MOST_GROWTH:
                raise UserError(f"its {part} expands one character to more than {MOST_GROWTH:,}", where=str(path))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _numbers(node: Any) -> Iterator[tuple[str, int]]:
    """The sizes in a config and its nested configs (`text_config`)."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif key in RANGES and type(value) is int:
            yield key, value


def _growth(node: Any) -> float:
    """The maximal factor by which the successive replacements of a normalizer lengthen a text."""
    if isinstance(node, list):
        return math.prod(_growth(each) for each in node)
    if not isinstance(node, dict):
        return 1.0
    if node.get("type") != "Replace":
        return math.prod(_growth(each) for each in node.values())
    pattern = node.get("pattern")
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    return max(1.0, len(str(node.get("content", ""))) / max(1, len(literal or "")))
