"""The config node `dataset`: what is read, how rows become labels, and how sources mix. Light: nothing heavy imported."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from sft.config.errors import UserError
from sft.config.text import did_you_mean


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
        """A Source from what a config holds: a mapping, a path alone, or a Source. Raises UserError naming `where`."""
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
        """Raise UserError, naming the key below `where`, for values no reader could follow."""
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
                    f"{theirs!r} is no column's name", where=f"{where}.columns.{ours}", remedy="{ours: theirs}"
                )
        if self.generator is not None or self.path is not None:
            for key in ("revision", "subset"):
                if getattr(self, key) is not None:
                    raise UserError(f"{key} belongs to a hub dataset (name)", where=f"{where}.{key}")

    def described(self) -> str:
        """The source in a few words, for logs and reports."""
        if self.generator is not None:
            return _target(self.generator)
        if self.path is not None:
            return self.path if isinstance(self.path, str) else ", ".join(self.path)
        return "/".join(part for part in (self.name, self.subset) if part) + (f" [{self.split}]" if self.split else "")


@dataclass
class Dataset:
    """The config node `dataset`. Its YAML carries `_recursive_: false`: nodes inside a source are built when it is read.

    Args:
        sources: what is trained on, by name.
        eval_sources: what is evaluated on, by name; empty: `eval_fraction` of every training source is split off.
        path: one source's shorthand, `sources: {local: {path, format, columns, convert}}`.
        format, columns, convert: the shorthand's own, see Source.
        eval_fraction: share of each source's rows split off for evaluation, in [0, 1).
        max_length: tokens a row may have.
        on_long: what becomes of longer rows.
        max_dropped: share of rows that may be broken before the run is refused; over-long rows do not count.
        packing: whole documents laid end to end up to max_length tokens.
        eval_packing: the same for evaluation; null: as `packing`.
        size: rows in the training mixture; null: the most that repeats nothing.
        shuffle: order the mixture by the seed; false keeps the files' order.
        train_on: which turns are trained.
        masking: how trained tokens are found.
        response_template: text (or token ids) that precedes an answer, with `masking=response_template`.
        instruction_template: text (or token ids) that precedes a question, with `masking=response_template`.
        consecutive: what becomes of two assistant messages in a row: refused, or merged into one turn.
        history: what to do where a template renders earlier answers unlike generation would.
        control_tokens: what becomes of control tokens that are typed in contents: the row is refused, or they are text.
        use_text_column: train the `text` column whole; where rows have messages instead, their rendered text.
        num_proc: processes that convert and tokenize; null: chosen by the number of rows.
        cache: keep and reuse tokenized rows.
        check_rows: rows of each source whose mask is found twice.
    """

    sources: dict[str, Source] = field(default_factory=dict)
    eval_sources: dict[str, Source] = field(default_factory=dict)
    path: str | list[str] | None = None
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    convert: Any = None
    eval_fraction: float = 0.1
    max_length: int = 2048
    on_long: Literal["drop", "truncate", "error"] = "drop"
    max_dropped: float = 0.0
    packing: bool = False
    eval_packing: bool | None = None
    size: int | None = None
    shuffle: bool = True
    train_on: Literal["assistant", "last", "all"] = "assistant"
    masking: Literal["template", "response_template"] = "template"
    response_template: str | list[int] | None = None
    instruction_template: str | list[int] | None = None
    consecutive: Literal["refuse", "merge"] = "refuse"
    history: Literal["expand", "allow", "refuse"] = "expand"
    control_tokens: Literal["refuse", "text"] = "refuse"
    use_text_column: bool = False
    num_proc: int | None = None
    cache: bool = True
    check_rows: int = 64

    def __post_init__(self) -> None:
        self.sources = _sources(self.sources, "dataset.sources")
        self.eval_sources = _sources(self.eval_sources, "dataset.eval_sources")
        self._expand_shorthand()
        self._check_values()
        if self.eval_packing is None:
            self.eval_packing = self.packing

    def _expand_shorthand(self) -> None:
        """`path` becomes the source `local`; after it the dataset speaks in sources alone."""
        shorthand = {"path": self.path, "format": self.format, "columns": self.columns, "convert": self.convert}
        if self.path:
            if "local" in self.sources:
                raise UserError("dataset.path and dataset.sources.local are the same source", where="dataset.path")
            self.sources = {"local": Source.of(shorthand, "dataset"), **self.sources}
            self.path, self.columns, self.convert = (
                None,
                {},
                None,
            )  # so that a copy of this object is not expanded twice
            return
        self.columns = dict(self.columns or {})
        for key in ("columns", "convert"):
            if shorthand[key]:
                raise UserError("belongs to dataset.path; a named source has its own", where=f"dataset.{key}")
        if not self.sources:
            raise UserError(
                "nothing to train on: neither dataset.path nor dataset.sources is set",
                where="dataset.path",
                remedy="dataset=local dataset.path=FILE, or '+dataset.sources.NAME={path: FILE, weight: 1}'",
            )

    def _check_values(self) -> None:
        hints = get_type_hints(type(self))
        for key in ("on_long", "train_on", "masking", "consecutive", "history", "control_tokens"):
            choices = get_args(hints[key])
            if getattr(self, key) not in choices:
                raise UserError(f"{getattr(self, key)!r} is none of {', '.join(choices)}", where=f"dataset.{key}")
        _in_range("eval_fraction", self.eval_fraction, 0, 1, "a share below 1", upper_open=True)
        _in_range("max_dropped", self.max_dropped, 0, 1, "a share")
        for key, least in (("max_length", 1), ("size", 1), ("num_proc", 0), ("check_rows", 0)):
            value = getattr(self, key)
            if value is None and key in ("size", "num_proc"):
                continue
            if not is_integer(value) or value < least:
                raise UserError(f"a whole number of {least} or more, not {value!r}", where=f"dataset.{key}")
        if self.masking == "response_template" and not self.response_template:
            raise UserError(
                "masking=response_template needs the text that precedes an answer",
                where="dataset.response_template",
                remedy="dataset.response_template='### Response:'",
            )
        if self.sources and not any(source.weight != 0 for source in self.sources.values()):
            raise UserError("every source has weight 0", where="dataset.sources")


def refuse_unknown(node: Mapping[str, Any], schema: type, where: str) -> None:
    """Raise UserError for a key that is none of the dataclass `schema`'s, with the nearest that is."""
    known = [item.name for item in fields(schema)]
    for key in node:
        if key in known or is_hydra_key(key):
            continue
        remedy = did_you_mean(str(key), known, f"its keys are {', '.join(known)}", prefix=f"{where}.", cutoff=0.5)
        raise UserError(f"unknown key {where}.{key}", where=where, remedy=remedy)


def is_hydra_key(key: object) -> bool:
    """Whether a key is Hydra's own (`_target_`, `_recursive_`, ...), no argument."""
    return isinstance(key, str) and key.startswith("_") and key.endswith("_")


def is_integer(value: object) -> bool:
    """Whether a value is a whole number (True and False are not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a number that is not NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def node_of(source: Source) -> dict[str, Any]:
    """A source as the plain mapping its YAML would hold, for fingerprints and reports."""
    return asdict(source)


def _sources(node: Mapping[str, Any] | None, where: str) -> dict[str, Source]:
    if node is None:
        return {}
    if not isinstance(node, Mapping):
        raise UserError("a mapping of named sources: {NAME: {path: FILE, weight: 1}}", where=where)
    return {
        str(name): Source.of(value, f"{where}.{name}")
        for name, value in node.items()
        if value is not None and not is_hydra_key(name)
    }


def _in_range(key: str, value: Any, low: float, high: float, what: str, upper_open: bool = False) -> None:
    if not is_number(value) or not low <= value <= high or (upper_open and value == high):
        raise UserError(f"{what} between {low} and {high}, not {value!r}", where=f"dataset.{key}")


def _target(node: Mapping[str, Any] | Callable[..., Any]) -> str:
    if isinstance(node, Mapping):
        return str(node.get("_target_", "generator"))
    return getattr(node, "__qualname__", type(node).__name__)
