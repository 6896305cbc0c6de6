"""One source of a dataset as its config names it: where rows come from, and what they are read as. Light, as spec.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sft.config.errors import UserError
from sft.data.node import is_hydra_key, is_integer, is_number, refuse_unknown


@dataclass
class Source:
    """Where rows come from: exactly one of `path`, `name`, `generator`.

    Args:
        path: a local file, directory or glob (JSON, JSONL, CSV, Parquet, Arrow; .gz and .zst), or a list of them.
        name: id of a dataset on the hub.
        generator: a `_target_` node; the call gives an iterable of rows.
        subset: the hub dataset's configuration.
        split: a split's name, `train` where there are several; rows of it by `train[:100]`, `test[50%:]`.
        samples: only the first so many rows.
        weight: share in the mixture relative to the other sources'. Null everywhere: every row of every source once.
        format: name of the rows' format, `auto` to recognise it (see sft.data.formats).
        columns: {our column: theirs}; theirs may be a dotted path into nested rows.
        streaming: read the hub dataset row by row without storing it first.
        revision: commit, tag or branch of the hub dataset.
        convert: a `_target_` node naming a function `row -> conversation | None`; None leaves the row out.
    """

    path: str | list[str] | None = None
    name: str | None = None
    generator: Any = None
    subset: str | None = None
    split: str | None = None
    samples: int | None = None
    weight: float | None = None
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    streaming: bool = False
    revision: str | None = None
    convert: Any = None

    @classmethod
    def of(cls, node: Source | Mapping[str, Any] | str, where: str) -> Source:
        """A Source from a config value: a mapping, a path, or a Source. Raises UserError naming `where`."""
        if isinstance(node, Source):
            source = node
        elif isinstance(node, str):
            source = cls(path=node)
        elif isinstance(node, Mapping):
            refuse_unknown(node, cls, where)
            source = cls(**{key: value for key, value in node.items() if not is_hydra_key(key)})
        else:
            raise UserError(f"a source is a mapping with path or name, not {node!r}", where=where)
        source.check(where)
        return source

    def check(self, where: str) -> None:
        """Raise UserError, naming the key below `where`, for invalid values."""
        given = [key for key in ("path", "name", "generator") if getattr(self, key)]
        if len(given) != 1:
            what = f"{' and '.join(given)} are both set" if given else "neither path nor name is set"
            remedy = f"{where}.{given[-1]}=null" if given else f"{where}.path=FILE or {where}.name=HUB_ID"
            raise UserError(what, where=where, remedy=remedy)
        if self.weight is not None and not (is_number(self.weight) and 0 <= self.weight < math.inf):
            raise UserError(f"a weight is a number of 0 or more, not {self.weight!r}", where=f"{where}.weight")
        if self.samples is not None and not (is_integer(self.samples) and self.samples > 0):
            raise UserError(f"samples is a whole number above 0, not {self.samples!r}", where=f"{where}.samples")
        self.columns = dict(self.columns or {})
        for ours, theirs in self.columns.items():
            if not isinstance(theirs, str) or not theirs:
                raise UserError(
                    f"{theirs!r} is not a column's name", where=f"{where}.columns.{ours}", remedy="{ours: theirs}"
                )
        if self.generator is not None or self.path is not None:
            for key in ("revision", "subset"):
                if getattr(self, key) is not None:
                    raise UserError(f"{key} belongs to a hub dataset (name)", where=f"{where}.{key}")

    def described(self) -> str:
        """A short description of the source, for logs and reports."""
        if self.generator is not None:
            return _target(self.generator)
        if self.path is not None:
            return self.path if isinstance(self.path, str) else ", ".join(self.path)
        return "/".join(part for part in (self.name, self.subset) if part) + (f" [{self.split}]" if self.split else "")


def node_of(source: Source) -> dict[str, Any]:
    """A source as the plain mapping its YAML would hold, for fingerprints and reports."""
    return asdict(source)


def _target(node: Mapping[str, Any] | Callable[..., Any]) -> str:
    if isinstance(node, Mapping):
        return str(node.get("_target_", "generator"))
    return getattr(node, "__qualname__", type(node).__name__)
