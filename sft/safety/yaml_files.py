"""YAML files looked at before they are read: aliases that grow without end, nesting without end, Python's objects.

OmegaConf copies what an alias stands for, so nine lines of ten aliases each would become a billion nodes.
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
MOST_BITS = 1024  # of a whole number: no setting is larger than the largest float


def check_yaml(path: Path) -> UserError | None:
    """What is wrong with a YAML file, told without building what it describes; None where nothing is."""
    import yaml

    def wrong(what: str) -> UserError:
        return UserError(what, where=str(path))

    try:
        if not path.is_file():
            return wrong("is no regular file" if path.exists() else "does not exist")
        if path.stat().st_size > LARGEST:
            return wrong(f"is larger than {LARGEST >> 20} MiB, which no config is")
        data = path.read_bytes()
        text = data.decode("utf-8")
        if _most_levels(text) > MOST_LEVELS:
            return wrong("nested too deeply")
        if not re.search(r"&|python/|!!|!<|%TAG|[\dxa-fA-F:_]{300}|\\U", text) and len(data) < 1 << 20:
            return None  # nothing that could be more than it seems; what else is wrong is told by its reader
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if "tag:yaml.org,2002:python/" in text or "!!python/" in text:
            return wrong("names an object of Python (!!python/...), and none is built from a config")
        if _expanded(node, {}) > MOST_NODES:
            return wrong(f"has aliases that stand for more than {MOST_NODES:,} values")
        if any(isinstance(value, int) and value.bit_length() > MOST_BITS for value in _scalars(yaml.safe_load(text))):
            return wrong("has a whole number of more digits than any setting has")
    except OSError as error:
        return wrong("cannot be read: " + (error.strerror or str(error)))
    except UnicodeDecodeError:
        return wrong("is not UTF-8")
    except yaml.YAMLError:
        return None
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError) as error:  # a tag that its value is none of
        return wrong(f"has a value that cannot be read: {' '.join(str(error).split())[:200]}")
    except RecursionError:
        return wrong("nested too deeply")
    return None


def _most_levels(text: str) -> int:
    """At least as many levels as the text has: brackets that open, and steps of indent."""
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
    """How many values a node stands for, its aliases written out; a node inside of itself is without end."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = MOST_NODES + 1  # where it is met again before it is counted, it holds itself
    value = getattr(node, "value", None)
    items = value if isinstance(value, list) else []
    parts = [each for item in items for each in (item if isinstance(item, tuple) else (item,))]
    known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]
