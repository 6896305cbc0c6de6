"""The keys of a composed config that belong to no `_target_`: those of the run itself and of each command.

The key checker reads their names and types, as it reads those of every `_target_`. A run reads its config through
`sft.config.run_config.RunConfig`, which has the attributes of `Train`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sft.config.node import Node


@dataclass
class SweepOptions:
    """Settings of a sweep's jobs."""

    share_base: bool
    retry_failed: bool


@dataclass
class HubOptions:
    """What is pushed to the Hugging Face hub; the token comes from the environment variable HF_TOKEN."""

    push: str | None
    private: bool
    what: Literal["adapter", "merged"] | None


@dataclass
class EstimateOptions:
    """What a run does with its memory estimate: refuse to start where it cannot fit, or only log it."""

    enforce: bool


@dataclass(frozen=True)
class Train:
    """One run: the groups are checked by their own `_target_`s; these are the keys beside them.

    Attributes:
        weight_neutral: the keys with no effect on the weights, with all below them (see `sft.config.weight_neutral`).
    """

    name: str
    seed: int
    resume: str
    on_nonfinite: Literal["stop", "skip"]
    objective: str | None
    direction: Literal["minimize", "maximize"] | None
    save_merged_model: bool
    profile: bool
    allow_targets: list[str]
    allow_changes: list[str]
    model: Node
    quant: Node | None
    lora: Node | None
    dataset: Node
    template: Node
    callbacks: Node | None
    trainer: Node
    tracker: Node | None
    evaluation: Node | None
    sweep: SweepOptions
    hub: HubOptions
    estimate: EstimateOptions
    weight_neutral: ClassVar[tuple[str, ...]] = (
        "name", "resume", "on_nonfinite", "objective", "direction", "save_merged_model", "profile", "allow_targets",
        "allow_changes", "tracker", "evaluation", "sweep", "hub", "estimate",
    )  # fmt: skip


@dataclass
class PreviewOptions:
    """How many rows `sft.preview` shows, and whether special tokens are drawn."""

    rows: int


@dataclass(frozen=True)
class Preview(Train):
    """`python -m sft.preview`."""

    preview: PreviewOptions


@dataclass(frozen=True)
class Reproduce(Train):
    """`python -m sft.reproduce run=DIR`."""

    run: str


@dataclass(frozen=True)
class Evaluate(Train):
    """`python -m sft.evaluate run=DIR`."""

    run: str | None
    judge: Node | None


@dataclass(frozen=True)
class _Sampled(Train):
    """A command that generates answers: the keys of `sft.evaluation.sampling.Sampling` are top-level keys."""

    run: str | None
    system: str | None
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float


@dataclass(frozen=True)
class Chat(_Sampled):
    """`python -m sft.chat run=DIR`."""

    prompt: str | None


@dataclass(frozen=True)
class WebUI(_Sampled):
    """`python -m sft.webui run=DIR`."""

    runs_dir: str | None
    host: str
    port: int
    share: bool
    load_in_4bit: bool
    conversations: str


@dataclass(frozen=True)
class Merge(Train):
    """`python -m sft.merge run=DIR`."""

    run: str | None
    output: str | None
    overwrite: bool


@dataclass(frozen=True)
class Estimate(Train):
    """`python -m sft.estimate`."""

    run: str | None
    rows: bool
    measure: bool
    json: bool


@dataclass
class Doctor:
    """`python -m sft.doctor`."""

    json: bool


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


@dataclass
class Leaderboard:
    """`python -m sft.leaderboard dir=SWEEP`."""

    dir: str
    objective: str | None
    direction: Literal["minimize", "maximize"] | None


@dataclass
class Compare:
    """`python -m sft.compare runs=[A,B]`."""

    runs: list[str]
    output: str | None


COMMANDS = {
    "train": Train,
    "preview": Preview,
    "reproduce": Reproduce,
    "evaluate": Evaluate,
    "chat": Chat,
    "webui": WebUI,
    "merge": Merge,
    "estimate": Estimate,
    "doctor": Doctor,
    "prepare": Prepare,
    "leaderboard": Leaderboard,
    "compare": Compare,
}
