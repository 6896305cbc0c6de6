"""The keys of a composed config that belong to no `_target_`: the run itself, and what each command adds to it.

These classes are never built; the key checker reads their names and types, as it reads those of every `_target_`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class Train:
    """One run: the groups are checked by their own `_target_`s, these are the keys beside them."""

    name: str
    seed: int
    resume: str
    objective: str | None
    direction: Literal["minimize", "maximize"] | None
    save_merged_model: bool
    allow_targets: list[str]
    allow_changes: list[str]
    model: dict[str, Any]
    quant: dict[str, Any] | None
    lora: dict[str, Any] | None
    dataset: dict[str, Any]
    template: dict[str, Any]
    callbacks: dict[str, Any] | None
    trainer: dict[str, Any]
    tracker: dict[str, Any] | None
    evaluation: dict[str, Any] | None


@dataclass
class PreviewOptions:
    """How many rows `sft.preview` shows, and whether special tokens are drawn."""

    rows: int


@dataclass
class Preview(Train):
    """`python -m sft.preview`."""

    preview: PreviewOptions


@dataclass
class Prepare:
    """`python -m sft.prepare source=dolly output=FILE`."""

    source: Literal["dolly", "oasst1", "alpaca", "all", "swe_synth", "swe"]
    input: str | None
    output: str
    mode: Literal["simple", "code_context"]
    context: Literal["auto", "file", "diff"]
    lang: str
    samples: int | None


COMMANDS = {"train": Train, "preview": Preview, "prepare": Prepare}
