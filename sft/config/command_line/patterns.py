"""Regular expressions on the command line, typed as they are: Hydra's grammar has no form for many of them."""

from __future__ import annotations

import re

from sft.config.command_line.quoting import quoted
from sft.config.resolvers import mapping_as_interpolation

# Keys whose values are regular expressions, or mappings and lists of them.
PATTERNS = re.compile(
    r"(\+{0,2})(lora\.(?:rank_pattern|alpha_pattern|target_modules|exclude_modules|layers_pattern|modules_to_save"
    r"|target_parameters)|quant\.llm_int8_skip_modules|trainer\.optim_target_modules)=(.*)",
    re.DOTALL,
)
_ENTRY = re.compile(r"\s*(.+?)\s*:\s*([+-]?\d+(?:\.\d+)?)\s*(?:,|$)")
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def with_patterns(override: str, prefix: str, key: str, value: str) -> str:
    """An override of `PATTERNS` rewritten into a form that Hydra reads; one that it reads already is unchanged.

    Args:
        override: as typed: `{prefix}{key}={value}`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(override)
        return override
    except (HydraException, RecursionError):
        pass
    value = value.strip()
    inside = value[1:-1]
    if value[:1] == "{":
        entries = _entries(inside) if value[-1:] == "}" else None
        return override if entries is None else f"{prefix}{key}={mapping_as_interpolation(entries)}"
    if value[:1] == "[" and value[-1:] == "]":
        return f"{prefix}{key}=[{','.join(quoted(each) for each in _items(inside))}]"
    return override if value[:1] == "[" else f"{prefix}{key}={quoted(value)}"


def _entries(text: str) -> dict[str, float] | None:
    """`^a(b|c): 2, d: 4` as a mapping of expressions to numbers; None where it is none."""
    found: dict[str, float] = {}
    at = 0
    while at < len(text):
        entry = _ENTRY.match(text, at)
        if entry is None:
            return None
        number = float(entry[2])
        found[_bare(entry[1])] = int(number) if number.is_integer() else number
        at = entry.end()
    return found


def _items(text: str) -> list[str]:
    """The parts between commas that no bracket encloses."""
    parts: list[str] = [""]
    closing: list[str] = []
    for character in text:
        if character == "," and not closing:
            parts.append("")
            continue
        if character in _BRACKETS:
            closing.append(_BRACKETS[character])
        elif closing and character == closing[-1]:
            closing.pop()
        parts[-1] += character
    return [_bare(part.strip()) for part in parts if part.strip()]


def _bare(text: str) -> str:
    """Without the quotes around it."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
