"""Checks of YAML files before they are read: exponential aliases, deep nesting, Python objects.

OmegaConf copies the value of an alias, so nine lines of ten aliases each would become a billion nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft.config.errors import UserError

MOST_NODES = 100_000
MOST_LEVELS = 100
LARGEST = 16 << 20  # bytes
MOST_BITS = 1024  # bits of an integer: no setting is larger than the largest float


def check_yaml(path: Path) -> UserError | None:
    """The error for a YAML file, found without building its values; None where it is fine."""
    import yaml

    def wrong(what: str) -> UserError:
        return UserError(what, where=str(path))

    try:
        if not path.is_file():
            return wrong("is not a regular file" if path.exists() else "does not exist")
        if path.stat().st_size > LARGEST:
            return wrong(f"is larger than {LARGEST >> 20} MiB, which no config is")
        data = path.read_bytes()
        text = data.decode("utf-8")
        if _most_levels(text) > MOST_LEVELS:
            return wrong("nested too deeply")
        if not re.search(r"&|python/|!!|!<|%TAG|[\dxa-fA-F:_]{300}|\\U", text) and len(data) < 1 << 20:
            return None  # nothing that could expand; other errors are reported by its reader
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if "tag:yaml.org,2002:python/" in text or "!!python/" in text:
            return wrong("names an object of Python (!!python/...), and none is built from a config")
        if _expanded(node, {}) > MOST_NODES:
            return wrong(f"has aliases that expand to more than {MOST_NODES:,} values")
        if any(isinstance(value, int) and value.bit_length() > MOST_BITS for value in _scalars(yaml.safe_load(text))):
            return wrong("has an integer with more digits than any setting has")
    except OSError as error:
        return wrong("cannot be read: " + (error.strerror or str(error)))
    except UnicodeDecodeError:
        return wrong("is not UTF-8")
    except yaml.YAMLError:
        return None
    # a value that does not fit its tag
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError) as error:
        return wrong(f"has a value that cannot be read: {' '.join(str(error).split())[:200]}")
    except RecursionError:
        return wrong("nested too deeply")
    return None


def _most_levels(text: str) -> int:
    """An upper bound of the nesting levels of a text: opening brackets, and indentation steps."""
    flow = text.count("[") + text.count("{")
    if flow > MOST_LEVELS:
        depth = flow = 0
        for character in text:
            depth += (character in "[{") - (character in "]}")
            flow = max(flow, depth)
    longest = max((len(line) - len(line.lstrip(" -?:")) for line in text.split("\n")), default=0)
    return max(flow, longest // 2)


def _scalars(node: Any) -> Iterator[Any]:
    """All values of containers, keys among them."""
    if isinstance(node, dict | list | tuple | set):
        for each in [*node, *(node.values() if isinstance(node, dict) else ())]:
            yield from _scalars(each)
    else:
        yield node


def _expanded(node: Any, known: dict[int, int]) -> int:
    """The number of values of a node with its aliases expanded; infinite for a node that contains itself."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MOST_NODES + 1  # if it is reached again before it is counted, it contains itself
    value = getattr(node, "value", None)
    items = value if isinstance(value, list) else []
    parts = [each for item in items for each in (item if isinstance(item, tuple) else (item,))]
    known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]
