"""Errors for config nodes from which an object is built but which hold a plain value or lack `_target_`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sft.config.checks.owners import override_text
from sft.config.errors import UserError
from sft.config.paths import conf_dir

# Nodes that are one object each. Their options are those of the group of the same name.
BUILT = ("model", "quant", "lora", "dataset", "template", "trainer", "tracker", "evaluation", "judge")


def misplaced(config: Mapping[str, Any]) -> Iterator[UserError]:
    """An error for each node from which no object can be built."""
    for name in BUILT:
        node = config.get(name)
        if isinstance(node, Mapping) and "_target_" not in node:
            yield UserError(
                "it has no _target_, so it is unclear what to build", where=name, remedy=f"{name}={_option(name)}"
            )
    callbacks = config.get("callbacks")
    if not isinstance(callbacks, Mapping):
        return
    for name, node in callbacks.items():
        where = f"callbacks.{name}"
        if node is None or node == "???" or (isinstance(node, Mapping) and "_target_" in node):
            continue
        known = str(name) in _options("callbacks")
        there = ", ".join(_options("callbacks"))
        remedy = f"callbacks=[default,{name}]" if known else f"{where}=null turns it off. There are: {there}"
        if isinstance(node, Mapping):
            what = "it has no _target_, so it is unclear which callback it is"
            remedy = (
                remedy if known else f"'+{where}={{_target_: my.module.Callback}}' 'allow_targets=[my.module.Callback]'"
            )
        else:
            what = f"{override_text(node)} is a plain value where a callback's node belongs"
        yield UserError(what, where=where, remedy=remedy)


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _option(group: str) -> str:
    options = [option for option in _options(group) if option != "none"]
    return "default" if "default" in options else options[0] if options else "OPTION"
