"""training_info.json: facts about a trained model for inference and merging."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.run.directory import RunDirectory
from sft.run.jsonable import dumps
from sft.run.record import now


@dataclass
class TrainingInfo:
    """Facts about a trained model, stored with its weights.

    Attributes:
        model_name: the name in the config (hub id, directory, or one of the project's names such as smollm2_offline).
        model_path: for plain transformers: a hub id or an absolute local directory.
        model_kind: where it comes from (hub, local, embedded, tiny).
        model_revision: the hub revision, if one was given.
        base_fingerprint: digest of the base's weights (`sft.model.fingerprint`), None where it is not known.
        model_type: transformers' name of the architecture ("qwen3").
        family: the project's name of the model family.
        method: lora, qlora or full.
        stop_tokens: the texts that end an answer.
        system: the system prompt it was trained with, None for none.
        template: the chat template's text, as it was used.
        template_name: which template that is and why.
        template_kwargs: variables it was rendered with (enable_thinking).
        lora: peft's settings, {} for a full fine-tune.
        quant: the quantization it was trained with, {} for none.
        dtype: the base model's dtype in training.
        tokenizer: name, vocabulary size, added tokens, pad and end tokens.
        dataset: sources with their rows and fingerprints, max_length, packing.
        sft_version: which version of the project wrote this.
        started, finished: local times in ISO 8601.
        extra: anything else, JSON values.
    """

    model_name: str = ""
    model_path: str = ""
    model_kind: str = "hub"
    model_revision: str | None = None
    base_fingerprint: str | None = None
    model_type: str | None = None
    family: str | None = None
    method: str = "lora"
    stop_tokens: list[str] = field(default_factory=list)
    system: str | None = None
    template: str | None = None
    template_name: str | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    quant: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    tokenizer: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    sft_version: str = ""
    started: str = field(default_factory=now)
    finished: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def write(self, run: RunDirectory) -> None:
        """Write training_info.json."""
        run.write_json(run.training_info, self)

    def write_beside(self, weights: Path) -> None:
        """Write it also into the directory of the weights, which may be copied without the run."""
        (weights / "training_info.json").write_text(dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, run: RunDirectory) -> TrainingInfo:
        """Read it back; keys of a newer version go into ``extra``.

        Raises:
            UserError: the directory has no training_info.json, so it is not a run of this project.
        """
        found = run.read_json(run.training_info)
        if not isinstance(found, dict):
            raise UserError(
                "has no training_info.json, so it is not the directory of a run that began training",
                where=str(run.path),
                remedy="give the run's own directory, the one that holds adapter/ or model/",
            )
        return cls.of(found)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> TrainingInfo:
        """From the content of training_info.json."""
        known = {f.name for f in fields(cls)}
        info = cls(**{key: value for key, value in found.items() if key in known})
        info.extra.update({key: value for key, value in found.items() if key not in known})
        return info
