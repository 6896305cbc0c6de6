"""The model that a command works on: a run's adapter, a fine-tuned or merged model, or a bare base."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sft.config.build import build
from sft.config.errors import UserError
from sft.config.run_config import RunConfig
from sft.model.spec import Model, Tokenizer
from sft.run.directory import RunDirectory
from sft.run.info import TrainingInfo
from sft.training.resume.config_changes import read_snapshot

log = logging.getLogger(__name__)


@dataclass
class ModelSource:
    """What to load, and what is known about it.

    Attributes:
        name: for messages: the run directory's name, or the model's.
        spec: the model to load; for a run with an adapter, its base.
        quant: the config node of the base's quantization; None for none.
        adapter: the directory of the adapter, None for a complete model.
        info: recorded by its training; None for a model that sft did not train.
        run: the run directory, None where a model is named instead.
        allowed: the config's `allow_targets`.
    """

    name: str
    spec: Model
    quant: Mapping[str, Any] | None
    adapter: Path | None
    info: TrainingInfo | None
    run: RunDirectory | None
    allowed: list[str]

    @property
    def weights(self) -> str:
        """The directory or hub id with tokenizer and chat template."""
        return str(self.adapter) if self.adapter and has_tokenizer(self.adapter) else self.spec.locate()

    def load(
        self, tokenizer: Any = None, control: Sequence[str] = (), device: str | None = None, base: Any = None
    ) -> Any:
        """The model in eval mode.

        Args:
            tokenizer: if given, embeddings of tokens that it adds to the base are initialized as in training.
            control: the chat template's control tokens, with `tokenizer`.
            device: as in `load_model`.
            base: the result of `load_base`, if it is already loaded.

        Raises:
            UserError: weights cannot be found or read, or the adapter was trained on another base.
        """
        from sft.kernels import lowrank
        from sft.model.adapters.existing import load_adapter
        from sft.model.embeddings import fit_embeddings

        if self.adapter is not None:
            self.check_base()
        model = self.load_base(device) if base is None else base
        if tokenizer is not None:
            fit_embeddings(model, tokenizer, control)
        if self.adapter is not None:
            model = load_adapter(model, self.adapter)
            lowrank.install(model)  # so that rounding is the same as in training
        return model.eval()

    def load_base(self, device: str | None = None) -> Any:
        """Load the weights of `spec` and `quant`, without the adapter."""
        from sft.model.load import load_model

        return load_model(self.spec, build(self.quant, where="quant", allowed=self.allowed), device=device)

    def base(self) -> ModelSource | None:
        """The model before training, None where it is not known; for an adapter, disable it instead."""
        if self.info is None or not self.info.model_path:
            return None
        spec = replace(self.spec, name=self.info.model_path, revision=self.info.model_revision, tokenizer=Tokenizer())
        return replace(self, name=self.info.model_name, spec=spec, adapter=None, info=None)

    def check_base(self) -> None:
        """Refuse an adapter over a base other than the one it was trained on.

        Raises:
            UserError: the fingerprint of the base's weights differs from that in training_info.json.
        """
        from sft.model.fingerprint import weights_fingerprint

        wanted = self.info.base_fingerprint if self.info else None
        found = weights_fingerprint(self.spec.locate(), self.spec.revision) if wanted else None
        if found is not None and found != wanted:
            assert self.info is not None
            raise UserError(
                f"{self.spec.locate()} is not the base that the adapter was trained on: its weights differ",
                where="model.name",
                remedy=f"use the one from training ({self.info.model_path}"
                + (f", revision {self.info.model_revision})" if self.info.model_revision else ")"),
            )


def find_model_source(config: Mapping[str, Any]) -> ModelSource:
    """The model of a resolved config: the result of `run`, else `model`.

    Raises:
        UserError: the run has no weights yet, or there is no such model.
    """
    config = RunConfig.of(config)
    allowed = config.allow_targets
    spec: Model = build(config.model, where="model", allowed=allowed)
    if config.get("run"):
        return _of_run(config, spec, allowed)
    if spec.adapter:
        return _of_adapter(config, spec, allowed)
    located, info = spec.locate(), None
    if Path(located).is_dir():
        info = _info_beside(Path(located))
    quant = config.quant
    return ModelSource(spec.name or Path(located).name, spec, quant, None, info, None, allowed)


def _of_adapter(config: RunConfig, spec: Model, allowed: list[str]) -> ModelSource:
    """An adapter over the base that the config names, with the training info beside it, if any."""
    from sft.model.adapters.existing import check_adapter

    path = check_adapter(str(spec.adapter))
    info = _info_beside(path)
    if info is not None and spec.dtype == "auto":
        spec = replace(spec, dtype=_precision(info, spec))
    return ModelSource(path.name, replace(spec, adapter=None), config.quant, path, info, None, allowed)


def inferred_info(model_source: ModelSource, tokenizer: Any, bound: Any) -> TrainingInfo:
    """Training info inferred for an adapter without training_info.json."""
    from sft.model.adapters.existing import read_adapter_config
    from sft.model.facts import family_of
    from sft.model.load import load_config

    spec = model_source.spec
    model_config = load_config(spec)
    assert model_source.adapter is not None
    return TrainingInfo(
        model_name=spec.name or spec.locate(),
        model_path=spec.locate(),
        model_kind="local" if Path(spec.locate()).is_dir() else "hub",
        model_revision=spec.revision,
        model_type=getattr(model_config, "model_type", None),
        family=family_of(spec, model_config).name,
        stop_tokens=list(bound.stop_tokens),
        template=bound.text,
        template_name=bound.reason,
        template_kwargs=dict(bound.kwargs),
        lora=read_adapter_config(model_source.adapter),
        tokenizer={"name": tokenizer.name_or_path, "size": len(tokenizer)},
    )


def has_tokenizer(directory: Path) -> bool:
    """Whether a tokenizer is stored with an adapter; plain peft saves none."""
    return any((directory / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json"))


def _of_run(config: RunConfig, spec: Model, allowed: list[str]) -> ModelSource:
    run = RunDirectory(config["run"])
    info = TrainingInfo.read(run)
    if unchanged(config, run, "model.dtype"):
        spec = replace(spec, dtype=_precision(info, spec))
    name = run.path.name
    if spec.adapter and not unchanged(config, run, "model.adapter"):
        raise UserError(
            "the run has an adapter of its own",
            where="model.adapter",
            remedy=f"leave one of the two out: run={run.path}, or model=... model.adapter={spec.adapter}",
        )
    if (run.adapter / "adapter_config.json").is_file():
        spec = replace(spec, adapter=None)
        return ModelSource(name, spec, config.quant, run.adapter, info, run, allowed)
    if (run.model / "config.json").is_file():
        spec = replace(spec, name=str(run.model), revision=None, adapter=None, tokenizer=Tokenizer())
        return ModelSource(name, spec, config.quant, None, info, run, allowed)
    raise UserError(
        "has no weights yet: neither adapter/ nor model/ is there",
        where=f"run={config['run']}",
        remedy=f"start its training again with hydra.run.dir={run.path}: it resumes from its last checkpoint",
    )


def unchanged(config: Mapping[str, Any], run: RunDirectory, key: str) -> bool:
    """Whether a dotted key has the value that the run was trained with."""
    before = read_snapshot(run) or {}
    return _select(config, key) == _select(before, key)


def _select(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def _precision(info: TrainingInfo, spec: Model) -> Any:
    """The precision of the weights in training, so that the same model is evaluated."""
    return info.dtype if info.dtype in ("bfloat16", "float16", "float32") else spec.dtype


def _info_beside(directory: Path) -> TrainingInfo | None:
    """training_info.json in a merged model's directory, or beside the model/ of a run."""
    for place in (directory, directory.parent) if directory.name == "model" else (directory,):
        path = place / "training_info.json"
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError):
                found = None
            if not isinstance(found, dict):
                raise UserError("is not a valid JSON object", where=str(path), remedy="restore the file or remove it")
            return TrainingInfo.of(found)
    return None
