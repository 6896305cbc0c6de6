"""From rows to conversations, in the format of most rows or the one the user names."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sft.config.errors import UserError
from sft.config.text import did_you_mean
from sft.data.formats.columns import checked_columns, rename_columns
from sft.data.formats.errors import RowError
from sft.data.formats.function import code_of, function_of
from sft.data.formats.table import ALIASES, FORMATS, Conversation, Format
from sft.data.formats.turns import Consecutive
from sft.data.formats.values import EMPTY, kind_of
from sft.data.readers.rows import Broken, Row
from sft.data.report.notes import collected, note
from sft.data.source import Source

HEAD = 5000  # rows from which a source's format is recognised


@dataclass
class Converter:
    """Turns one source's rows into conversations; picklable as long as `convert` is.

    Attributes:
        format: name of the source's format; `convert` where the user's function decides.
        named: whether the user named the format; other columns of a row are then ignored.
        columns: {our column: theirs}.
        convert: the user's function `row -> conversation | None`.
        consecutive: as `dataset.consecutive`.
        as_text: conversations with messages are to be rendered to text and trained whole (`use_text_column`).
        fingerprint: digest of everything that affects the conversion, the module of the user's function included.
    """

    format: str
    named: bool = False
    columns: dict[str, str] = field(default_factory=dict)
    convert: Callable[[Any], Any] | None = None
    as_text: bool = False
    consecutive: Consecutive = "refuse"
    fingerprint: str = ""

    def to_conversation(self, row: Row) -> Conversation:
        """The row as {"messages": [...], "tools": [...]} or {"text": ...}. Raises RowError with the reason."""
        if isinstance(row, Broken):
            raise RowError(row.kind, row.reason[len(row.kind) :])
        try:
            mapped = rename_columns(row, self.columns) if self.columns else row
            if self.convert is not None:
                return self._by_function(mapped)
            conversation = (
                FORMATS[self.format].conversation(mapped, self.consecutive) if self.named else self._recognised(mapped)
            )
            _note_unread(mapped, FORMATS[self.format])
            return conversation
        except RecursionError:
            raise RowError("nested too deeply") from None

    def _by_function(self, row: Mapping[str, Any]) -> Conversation:
        assert self.convert is not None
        try:
            found = self.convert(row)
        except RowError:
            raise
        except Exception as error:  # an exception of the user's function concerns only this row
            raise RowError("convert failed", f": {type(error).__name__}: {error}") from error
        if found is None:
            raise RowError("left out by convert", broken=False)
        if not isinstance(found, dict):
            raise RowError("convert gave no conversation", f" but {kind_of(found)}")
        forms = formats_of(found)
        if not forms:
            raise RowError(
                "convert gave no conversation", f" but an object with {', '.join(map(str, found)) or 'no keys'}"
            )
        conversation = forms[0].conversation(found, self.consecutive)
        _note_unread(found, forms[0])
        return conversation

    def _recognised(self, row: Mapping[str, Any]) -> Conversation:
        forms = formats_of(row)
        names = [form.name for form in forms]
        if names and (self.format not in names or (self.format == "text" and names[0] != "text")):
            raise RowError("another format", f": {names[0]}, where the source's rows are {self.format}")
        conversation = FORMATS[self.format].conversation(row, self.consecutive)
        for form in forms:
            if form.name not in (self.format, "text"):
                _compare(conversation, form, row, self.format, self.consecutive)
        return conversation


def recognise(
    source: Source,
    rows: Iterable[Row],
    where: str,
    *,
    use_text_column: bool = False,
    consecutive: Consecutive = "refuse",
) -> Converter:
    """The converter of a source; its format is recognised from the given rows unless the user names it.

    Args:
        source: the user's choices (format, columns, convert).
        rows: the source's rows, or the first ones.
        where: the source's key in the config, for errors.
        use_text_column: train the column `text`, or what messages are rendered to.
        consecutive: as `dataset.consecutive`.

    Raises:
        UserError: an unknown format; a mapped column that no row has; rows of no known format.
    """
    seen = [row for row in rows if isinstance(row, dict)]
    columns = checked_columns(source, seen, where)
    convert = function_of(source.convert, where)
    found = Converter("convert" if convert else "", columns=columns, convert=convert, consecutive=consecutive)
    if convert is None:
        _choose(found, source, seen, where, use_text_column)
    found.as_text = use_text_column and found.format != "text"
    facts = [found.format, found.named, columns, found.as_text, consecutive, code_of(source.convert)]
    found.fingerprint = hashlib.sha256(json.dumps(facts, default=repr).encode()).hexdigest()[:16]
    return found


def formats_of(row: Mapping[str, Any]) -> list[Format]:
    """The formats that a row's filled columns match, the surest first."""
    filled = frozenset(key for key, value in row.items() if value is not None and value != "")
    return _fitting(filled)


def _choose(found: Converter, source: Source, rows: list[Any], where: str, use_text_column: bool) -> None:
    """Fill in the converter's format."""
    mapped = [rename_columns(row, found.columns) for row in rows] if found.columns else rows
    if source.format != "auto":
        found.format, found.named = format_named(source.format, f"{where}.format"), True
    elif use_text_column and any(isinstance(row.get("text"), str) for row in mapped):
        found.format, found.named = "text", True
    else:
        found.format = _majority(mapped, source, where)


def format_named(name: str, where: str) -> str:
    """The format of a name or an alias. Raises UserError with the nearest one."""
    if name in ALIASES:
        return ALIASES[name]
    remedy = did_you_mean(str(name).lower(), ALIASES, f"formats: auto, {', '.join(FORMATS)}")
    raise UserError(f"there is no format {name!r}", where=where, remedy=remedy)


def _majority(rows: list[Any], source: Source, where: str) -> str:
    """The surest of the formats that most rows have."""
    shapes = Counter(frozenset(key for key, value in row.items() if value is not None and value != "") for row in rows)
    votes: Counter[str] = Counter()
    for shape, count in shapes.items():
        for form in _fitting(shape):
            votes[form.name] += count
    if not votes:  # no row is complete: take the format that matches most columns
        for row in rows:
            votes.update(form.name for form in FORMATS.values() if any(name in row for name in form.needs[0]))
    if votes:
        most = max(votes.values())
        return next(name for name in FORMATS if votes[name] == most)
    if not rows:
        return "messages"  # every row is broken and is reported as such
    names = list(dict.fromkeys(str(key) for row in rows for key in row))
    raise UserError(
        f"the format of {source.described()} is not recognised: its columns are {', '.join(names[:20]) or 'none'}",
        where=where,
        remedy=f"map them, {where}.columns={{instruction: THEIRS, output: THEIRS}}, or name a function: {where}.convert",
    )


def _note_unread(row: Mapping[str, Any], form: Format) -> None:
    """Note the row's filled columns that its format does not read."""
    for key, value in row.items():
        if value not in EMPTY and not form.reads(key, value):
            note("unread_columns", str(key))


def _compare(
    conversation: Conversation, other: Format, row: Mapping[str, Any], chosen: str, consecutive: Consecutive
) -> None:
    """Raise RowError where a row's other columns give a different answer than those of the chosen format."""
    try:
        with collected():  # notes of the other format are discarded
            theirs = other.conversation(row, consecutive)
    except RowError as error:
        raise RowError(
            "contradicting columns", f": {chosen} is whole, {other.name} has {error.reason}; set format"
        ) from None
    ours, theirs = conversation["messages"][-1], theirs["messages"][-1]
    if ours["content"].strip() != theirs["content"].strip() or ours.get("tool_calls") != theirs.get("tool_calls"):
        raise RowError("contradicting columns", f": {chosen} and {other.name} end in different answers; set format")


_FITTING: dict[frozenset[Any], list[Format]] = {}


def _fitting(filled: frozenset[Any]) -> list[Format]:
    if filled not in _FITTING:
        if len(_FITTING) > 10_000:  # rows whose keys are data
            _FITTING.clear()
        fitting = [form for form in FORMATS.values() if form.fits(filled)]
        if not any(form.name != "text" for form in fitting):
            fitting = [*(form for form in FORMATS.values() if form.fits_alone(filled)), *fitting]
        _FITTING[filled] = fitting
    return _FITTING[filled]
