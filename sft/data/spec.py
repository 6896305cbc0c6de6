"""The config node `dataset`: what is read, how rows become labels, and how sources are mixed. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from sft.config.errors import UserError
from sft.data.node import is_hydra_key, is_integer, is_number
from sft.data.source import Source


@dataclass
class Dataset:
    """The config node `dataset`. Its YAML carries `_recursive_: false`: nodes inside a source are built when it is read.

    Args:
        sources: training sources, by name.
        eval_sources: evaluation sources, by name; empty: `eval_fraction` of every training source is split off.
        path: shorthand for one source, `sources: {local: {path, format, columns, convert}}`.
        format, columns, convert: the shorthand's own, see Source.
        eval_fraction: share of each source's rows split off for evaluation, in [0, 1).
        max_length: tokens a row may have.
        on_long: what to do with longer rows.
        max_dropped: share of rows that may be broken before the run is refused; over-long rows do not count.
        packing: concatenate whole documents up to max_length tokens.
        eval_packing: the same for evaluation; null: as `packing`.
        size: rows in the training mixture; null: as many as possible without repeats.
        shuffle: order the mixture by the seed; false keeps the files' order.
        train_on: which turns are trained.
        masking: how trained tokens are found.
        response_template: text (or token ids) that precedes an answer, with `masking=response_template`.
        instruction_template: text (or token ids) that precedes a question, with `masking=response_template`.
        consecutive: what to do with two assistant messages in a row: refuse, or merge into one turn.
        history: what to do where a template renders earlier answers differently than in generation.
        control_tokens: what to do with control tokens typed in contents: refuse the row, or treat them as text.
        use_text_column: train on the whole `text` column; where rows have messages instead, on their rendered text.
        num_proc: processes that convert and tokenize; null: chosen by the number of rows.
        cache: keep and reuse tokenized rows.
        check_rows: rows of each source whose mask is cross-checked.
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
    weight_neutral = ("num_proc", "cache", "check_rows")  # without effect on the weights

    def __post_init__(self) -> None:
        self.sources = _sources(self.sources, "dataset.sources")
        self.eval_sources = _sources(self.eval_sources, "dataset.eval_sources")
        self._expand_shorthand()
        self._check_values()
        if self.eval_packing is None:
            self.eval_packing = self.packing

    def _expand_shorthand(self) -> None:
        """Turn `path` into the source `local`, so that only sources are left."""
        shorthand = {"path": self.path, "format": self.format, "columns": self.columns, "convert": self.convert}
        if self.path:
            if "local" in self.sources:
                raise UserError("dataset.path and dataset.sources.local are the same source", where="dataset.path")
            self.sources = {"local": Source.of(shorthand, "dataset"), **self.sources}
            self.path, self.columns, self.convert = (
                None,
                {},
                None,
            )  # so that a copy of this object is not expanded again
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
                raise UserError(f"{getattr(self, key)!r} is not one of {', '.join(choices)}", where=f"dataset.{key}")
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
