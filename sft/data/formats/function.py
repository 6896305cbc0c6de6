"""The user's function from rows to conversations, named by `convert`."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.data.formats.values import kind_of


def function_of(node: Any, where: str) -> Callable[[Any], Any] | None:
    """The user's function: a `_target_` node whose other keys are bound, or a callable."""
    if not node:
        return None
    if isinstance(node, Mapping):
        from sft.config.build import build, targets_of

        # the target was admitted when the dataset node was built
        allowed = [target for _, target in targets_of(dict(node), "")]
        node = build({"_partial_": True, **node}, where=f"{where}.convert", allowed=allowed)
    if not callable(node):
        raise UserError(
            f"{kind_of(node)} is not a function", where=f"{where}.convert", remedy="{_target_: module.function}"
        )
    return node


def code_of(node: Any) -> Any:
    """A digest of a user's function: of its node and its module's source."""
    if not node:
        return None
    by_node = isinstance(node, Mapping)
    target = str(node.get("_target_")) if by_node else f"{getattr(node, '__module__', '')}.{node!r}"
    try:
        spec = importlib.util.find_spec(target.rpartition(".")[0] if by_node else node.__module__)
        source = Path(str(spec.origin)).read_bytes() if spec else b""
    except (ImportError, OSError, ValueError, AttributeError):
        source = b""
    return [dict(node) if by_node else target, hashlib.sha256(source).hexdigest()]
