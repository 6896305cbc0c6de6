"""Class attributes of the class that a `_target_` names, read from its source.

So config checks depend on the class and not on its name, and a user's subclass inherits its base's attributes.
"""

from __future__ import annotations

import ast
import contextlib
import functools
from pathlib import Path
from typing import Any

from sft.config.source_code.definitions import DEFINED_IN, base_classes, find_definition

_Class = tuple[ast.ClassDef, Path]
# Attributes for classes of libraries.
OF_LIBRARIES: dict[str, dict[str, Any]] = {
    "transformers.EarlyStoppingCallback": {"role": "stops_early"},
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher": {"requires": ("joblib", "joblib")},
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher": {"requires": ("submitit", "submitit")},
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": {"requires": ("submitit", "submitit")},
}


def class_attribute(target: object, name: str, default: Any = None) -> Any:
    """The value of a class attribute, the class's own or that of the nearest base that has it.

    Args:
        target: a node's `_target_`; the default is returned if it names no class that can be found.
        name: of the attribute, which is assigned a literal in the class body.
        default: returned if neither the class nor a base has it.
    """
    if not isinstance(target, str):
        return default
    if name in OF_LIBRARIES.get(target, {}):
        return OF_LIBRARIES[target][name]
    for node, _ in _classes(target):
        values = {**_literals(node), **_of_library(node)}
        if name in values:
            return values[name]
    return default


@functools.cache
def _classes(target: str) -> tuple[_Class, ...]:
    """A class and its bases in the order in which Python looks attributes up."""
    order: dict[ast.ClassDef, Path] = {}
    with contextlib.suppress(SyntaxError, ValueError, OSError):  # not Python, or not a file
        found = find_definition(DEFINED_IN.get(target, target))
        if found is None or not isinstance(found[0], ast.ClassDef):
            return ()
        for node, home in _with_bases(found[0], found[1]):
            order.pop(node, None)  # a common base comes after the last class that has it
            order[node] = home
    return tuple(order.items())


def _with_bases(node: ast.ClassDef, home: Path) -> list[_Class]:
    """A class and all its bases, each before its own bases; common bases are repeated."""
    return [(node, home), *(each for base in base_classes(node, home) for each in _with_bases(*base))]


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    """The literals that the body of a class assigns to names."""
    found: dict[str, Any] = {}
    for item in node.body:
        if not isinstance(item, ast.Assign | ast.AnnAssign) or item.value is None:
            continue
        for target in item.targets if isinstance(item, ast.Assign) else [item.target]:
            if isinstance(target, ast.Name):
                with contextlib.suppress(ValueError, TypeError):  # it is computed when the class is made
                    found[target.id] = ast.literal_eval(item.value)
    return found


def _of_library(node: ast.ClassDef) -> dict[str, Any]:
    """The attributes set here for a library's class."""
    for target, values in OF_LIBRARIES.items():
        if target.rpartition(".")[2] == node.name:
            found = find_definition(DEFINED_IN.get(target, target))
            if found is not None and found[0] is node:
                return values
    return {}
