"""The config of a run after it was checked: a read-only tree of objects, `config.trainer.max_steps`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sft.config.node import Node, ReadOnly
from sft.config.schema import Train

# What a key means that is absent or null: switched off with `~lora`, or unknown to the version that wrote a snapshot.
_ABSENT: Mapping[str, Any] = MappingProxyType(
    {
        "allow_changes": [],
        "allow_targets": [],
        "callbacks": None,
        "direction": None,
        "evaluation": None,
        "lora": None,
        "objective": None,
        "on_nonfinite": "stop",
        "profile": False,
        "quant": None,
        "tracker": None,
        "estimate": Node({"enforce": True}),
        "hub": Node({"push": None, "private": True, "what": None}),
        "sweep": Node({"share_base": True, "retry_failed": True}),
    }
)


class RunConfig(ReadOnly, Train):
    """A resolved config, without Hydra's node: the keys of `sft.config.schema.Train` as attributes.

    It is an equal mapping too, with the keys in their order; another command's own keys (`run`, `preview`) are read
    from that mapping.
    """

    if not TYPE_CHECKING:  # for mypy the attributes are those of Train, and a misspelt one is an error

        def __getattr__(self, name: str) -> Any:
            value, absent = self.get(name), _ABSENT.get(name)
            if isinstance(absent, Node):  # an older snapshot may lack some of its keys
                return Node({**absent, **(value or {})})
            if value is not None:
                return value
            if name in self or name in _ABSENT:
                return list(absent) if isinstance(absent, list) else absent
            raise self._missing(name)
