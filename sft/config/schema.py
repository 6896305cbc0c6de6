"""The keys of a composed config that belong to no `_target_`: the run itself, and what each command adds to it.

These classes are never built; the key checker reads their names and types, as it reads those of every `_target_`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class Sweep:
    """How a sweep treats its jobs."""

    retry_failed: bool
    share_base: bool


@dataclass
class Estimate:
    """Whether a run that cannot fit into memory is stopped before it starts."""

    enforce: bool
    measure: bool = False


@dataclass
class Hub:
    """Where a finished run is pushed to."""

    push: str | None
    private: bool = True


@dataclass
class Train:
    """One run: the groups are checked by their own `_target_`s, these are the keys beside them."""

    name: str
    seed: int
    resume: str
    objective: str | None
    direction: Literal["minimize", "maximize"] | None
    save_merged_model: bool
    on_nonfinite: Literal["stop", "skip"]
    allow_targets: list[str]
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
class Doctor:
    """`python -m sft.doctor`."""


@dataclass
class Prepare:
    """`python -m sft.prepare source=dolly output=FILE`."""

    source: str
    output: str | None
    input: str | None = None
    split: str | None = None
    mode: Literal["simple", "code_context"] = "simple"
    limit: int | None = None


COMMANDS = {"train": Train, "preview": Preview, "doctor": Doctor, "prepare": Prepare}
