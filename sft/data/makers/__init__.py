"""Converters of public datasets to JSONL for the readers and formats here; behind `python -m sft.prepare`."""

from __future__ import annotations

import gzip
import inspect
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sft.config.errors import UserError
from sft.config.paths import expanded
from sft.config.text import did_you_mean
from sft.data.makers.flat import alpaca, dolly
from sft.data.makers.made import Counts, MakerResult
from sft.data.makers.oasst import oasst1
from sft.data.makers.swe import swe, swe_synth
from sft.data.readers import read_source
from sft.data.readers.rows import Rows
from sft.data.source import Source
from sft.run.disk.atomic import replacing

log = logging.getLogger(__name__)

ALL = ("dolly", "oasst1", "alpaca")  # the sources of source=all
SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Maker:
    """How one dataset is prepared: the function from its rows to records, and where its rows are on the hub."""

    make: Callable[..., Iterator[MakerResult]]
    hub: str
    split: str = "train"


MAKERS = {
    "dolly": Maker(dolly, "databricks/databricks-dolly-15k"),
    "oasst1": Maker(oasst1, "OpenAssistant/oasst1"),
    "alpaca": Maker(alpaca, "tatsu-lab/alpaca"),
    "swe_synth": Maker(swe_synth, "swesynth/SWE-Synth"),
    "swe": Maker(swe, "princeton-nlp/SWE-bench"),
}


def prepare(
    source: str,
    input: str | None,
    output: str,
    *,
    mode: str = "simple",
    context: str = "auto",
    lang: str = "en",
    samples: int | None = None,
) -> Counts:
    """Write a public dataset as JSONL: streamed, and either completely or not at all.

    Args:
        source: dolly, oasst1, alpaca, swe_synth, swe, or all (the first three into one file).
        input: a file, directory or glob in the dataset's own schema; None reads it from the hub. With source=all a
            directory with one file for each, named after it (dolly.jsonl, oasst1.jsonl.gz, alpaca.json).
        output: the .jsonl or .jsonl.gz file to write; an existing one is replaced.
        mode: swe alone: simple, or code_context to show the code before the change.
        context: swe alone, where that code comes from: auto, file or diff.
        lang: oasst1 alone, the language of its messages.
        samples: only the first so many rows of the input.

    Returns:
        Counts in which every row that was read is accounted for.

    Raises:
        UserError: an unknown source or mode, an input that cannot be read, or nothing left to write.
    """
    _check(source, output, mode, context)
    path = expanded(output)
    options = {"mode": mode, "context": context, "lang": lang}
    parts = _inputs(source, input)
    total = Counts(source, str(path))
    with replacing(path) as temporary, _opened(temporary) as file:
        for name, given in parts.items():
            part = Counts(name, str(path)) if source == "all" else total
            for made in records(name, given, samples=samples, **options):
                part.add(made)
                if made.record is not None:
                    file.write(json.dumps(made.record, ensure_ascii=False).encode() + b"\n")
            if part is not total:
                log.info("%s", part)
                total.merge(part)
        if not total.written:
            raise UserError(
                f"nothing to write\n{total}", where=source, remedy="check that the input has this dataset's schema"
            )
    return total


def records(source: str, input: str | None = None, **options: Any) -> Iterator[MakerResult]:
    """A maker's results one by one; options it does not take are ignored.

    Args:
        source: name of the maker.
        input: local file, directory or glob; None: the hub.
        **options: samples, mode, context, lang.
    """
    maker = MAKERS[source]
    samples = options.pop("samples", None)
    if input is None:
        place = Source(name=maker.hub, split=maker.split, samples=samples)
    else:
        place = Source(path=input, samples=samples)
    rows = _rows(place, source)
    taken = inspect.signature(maker.make).parameters
    return maker.make(rows, **{key: value for key, value in options.items() if key in taken})


def conversations(source: str, input: str | None = None, samples: int | None = None, **options: Any) -> Iterator[dict]:
    """What `prepare` would write, row by row: a `generator` for a dataset's YAML that needs no prepared file.

    Args:
        source: name of the maker.
        input: local file, directory or glob; None: the hub.
        samples: only the first so many records.
        **options: mode, context, lang.
    """
    made = (each.record for each in records(source, input, **options))
    return itertools.islice((record for record in made if record is not None), samples)


def _rows(place: Source, name: str) -> Rows:
    """The rows of a source; in errors its key is the command's `input`."""
    try:
        yield from read_source(place, name, where="input")
    except UserError as error:
        where = "input" if error.where and error.where.startswith("input.") else error.where
        remedy = error.remedy.replace("input.path=", "input=") if error.remedy else None
        raise UserError(error.what, where=where, remedy=remedy) from error


def _check(source: str, output: str, mode: str, context: str) -> None:
    names = (*MAKERS, "all")
    if source not in names:
        remedy = did_you_mean(str(source), names, f"sources: {', '.join(names)}")
        raise UserError(f"there is no source {source!r}", where="source", remedy=remedy)
    for key, value, choices in (
        ("mode", mode, ("simple", "code_context")),
        ("context", context, ("auto", "file", "diff")),
    ):
        if value not in choices:
            raise UserError(f"{value!r} is not one of {', '.join(choices)}", where=key)
    if not output:
        raise UserError("no output file is named", where="output", remedy=f"output={source}.jsonl")
    if not str(output).endswith(SUFFIXES):
        raise UserError(
            f"{output} is not named as JSONL", where="output", remedy=f"end it with {' or '.join(SUFFIXES)}"
        )


def _inputs(source: str, given: str | None) -> dict[str, str | None]:
    """Each maker's input."""
    if source != "all":
        return {source: given}
    if given is None:
        return dict.fromkeys(ALL)
    folder = expanded(given)
    if not folder.is_dir():
        raise UserError(
            f"{given} is not a directory", where="input", remedy=f"one with a file for each of {', '.join(ALL)}"
        )
    found: dict[str, str | None] = {}
    for name in ALL:
        files = sorted(path for path in folder.iterdir() if name in path.name.lower())
        if len(files) != 1:
            there = ", ".join(path.name for path in files) or "none"
            raise UserError(
                f"it is unclear which file of {given} is {name}: {there}",
                where="input",
                remedy=f"one named {name}.jsonl",
            )
        found[name] = str(files[0])
    return found


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "wb") if path.name.endswith(".gz") else path.open("wb")  # type: ignore[return-value]
