"""Read-only config nodes: dicts whose keys are attributes too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import FrozenInstanceError
from typing import Any, NoReturn, Self


class ReadOnly(dict[str, Any]):
    """A mapping that nobody changes in place; the mappings in it, also those in lists, are `Node`s.

    It stays a dict, so that what compares, flattens or writes plain containers works with it unchanged. A dict's own
    method wins over a key of the same name: `node["items"]`.

    Args:
        values: the keys and values, which are copied.
    """

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__({key: _node(value) for key, value in dict(values).items()})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The same values as this class, without a copy where they are one already."""
        return values if isinstance(values, cls) else cls(values)

    def plain(self) -> dict[str, Any]:
        """An equal plain dict, all that it contains copied."""
        return {key: plain(value) for key, value in self.items()}

    def with_(self, **changes: Any) -> Self:
        """A copy in which these keys have these values."""
        return type(self)({**self, **changes})

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a config is read-only: with_(key=value) gives a changed copy")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse  # type: ignore

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to {name!r}: with_({name}=...) gives a changed copy")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)  # a dict's own way would set the keys one by one

    def _missing(self, name: str) -> AttributeError:
        known = ", ".join(map(str, self)) or "none"
        return AttributeError(f"the config has no key {name!r} here; there are: {known}", name=name, obj=self)


class Node(ReadOnly):
    """A group's node, whose keys are the arguments of a class: `trainer.max_steps`.

    Keys that the node need not name are read with their default: `trainer.get("max_steps", -1)`.
    """

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise self._missing(name)


def plain(value: Any) -> Any:
    """A value with all mappings in it as plain dicts; lists are copied."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def _node(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Node.of(value)
    return [_node(item) for item in value] if isinstance(value, list) else value
