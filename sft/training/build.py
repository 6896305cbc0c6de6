"""Model, callbacks and trainer of a run, built from its config."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from sft.config.build import build
from sft.config.checks.figures import evaluated_sources, objective_of
from sft.config.errors import UserError
from sft.config.run_config import RunConfig
from sft.config.source_code.class_attributes import class_attribute
from sft.distributed.ranks import process_group
from sft.kernels import elementwise, lowrank
from sft.model import shared
from sft.model.adapters.attach import attach, changes_base, refuse_names
from sft.model.embeddings import fit_embeddings
from sft.model.facts import empty_model, family_of
from sft.model.load import load_config, load_model
from sft.model.view import view_of
from sft.run.directory import RunDirectory
from sft.run.phases import mark
from sft.run.trackers.base import Tracker
from sft.training.arguments import build_arguments
from sft.training.callbacks.base import bind_all, trainer_arguments
from sft.training.callbacks.tracker import TrackerCallback
from sft.training.fused.place import current
from sft.training.inputs import Inputs
from sft.training.trainer.nonfinite import Guard

log = logging.getLogger(__name__)


def build_model(config: RunConfig, inputs: Inputs, shares_base: bool = False) -> Any:
    """The model to train: base weights, quantized if configured, embeddings for new tokens, adapter attached.

    Args:
        shares_base: reuse the base model of the sweep's previous job, if this job does not modify it.
    """
    allowed = config.allow_targets
    quant = build(config.quant, where="quant", allowed=allowed)
    lora = build(config.lora, where="lora", allowed=allowed)
    load = partial(load_model, inputs.model, quant, trained=lora is None, config=inputs.model_config)
    own_loss = class_attribute(config.trainer.get("_target_"), "own_loss", False)  # puts its output layer into it
    if shares_base and not own_loss and not changes_base(lora, inputs.model):
        base = shared.acquire_base(_base_key(config), load)
        if current.get() is not None:  # other jobs train on it at the same time
            base = view_of(base)
    else:
        shared.discard_base()
        base = load()
    mark("weights")
    control = [token for token in inputs.family.control_tokens if token in inputs.template.text]
    new_rows = fit_embeddings(base, inputs.tokenizer, control)
    targets = inputs.family.target_modules
    model, coverage = attach(base, lora, inputs.model, target_modules=targets, new_rows=new_rows, seed=config.seed)
    if not own_loss:
        lowrank.install(model)
        elementwise.install(model)
    log.info("%s", coverage.line())
    mark("adapter")
    return model


def _base_key(config: RunConfig) -> str:
    """Key of everything that a base model depends on."""
    return json.dumps([config.model, config.quant, os.environ.get("LOCAL_RANK")], sort_keys=True)


def build_callbacks_early(config: Mapping[str, Any], run: RunDirectory, explicit: Iterable[str] = ()) -> dict[str, Any]:
    """Build the config's callbacks by name, and everything else that needs neither data nor model, to fail early.

    Args:
        run: where checkpoints will go.
        explicit: trainer keys set on the command line.

    Raises:
        UserError: a node that does not build a callback, or settings that a library rejects.
    """
    config = RunConfig.of(config)
    allowed = config.allow_targets
    quant, lora, _ = (
        build(getattr(config, node), where=node, allowed=allowed) for node in ("quant", "lora", "tracker")
    )
    _refuse_names(config, quant, lora)
    evaluates = bool(evaluated_sources(config))
    callbacks = _build_callbacks(config)
    objective, direction = objective_of(config, evaluates)
    bind_all(callbacks.values(), None, objective=objective, direction=direction)
    asked = trainer_arguments(callbacks, config.trainer, explicit)
    dtype = str(config.model.get("dtype", "auto"))
    if not (config.trainer.get("fsdp") or config.trainer.get("deepspeed")):  # these change how a model is loaded
        build_arguments(
            config.trainer,
            run,
            seed=config.seed,
            asked=asked,
            dtype=dtype,
            evaluates=evaluates,
            allowed=allowed,
        )
    return callbacks


# Keys whose values name modules, parameters or layers of the model.
_NAMES = (
    *("target_modules", "exclude_modules", "modules_to_save", "rank_pattern", "alpha_pattern"),
    *("layers_to_transform", "layers_pattern", "target_parameters", "trainable_token_indices"),
)


def _refuse_names(config: RunConfig, quant: Any, lora: Any) -> None:
    """Check the names given in the config against the model, of which only its config is loaded."""
    asked: Mapping[str, Any] = config.lora or {}
    if not any(asked.get(key) for key in _NAMES) and not getattr(quant, "llm_int8_skip_modules", None):
        return
    spec = build(config.model, where="model", allowed=config.allow_targets)
    model_config = load_config(spec)
    try:
        empty = empty_model(model_config, spec.trust_remote_code)
    except UserError:
        raise
    except Exception as error:  # a model that cannot be built without weights is checked once it has them
        log.debug("names are checked later: %s", error)
        return
    refuse_names(lora, quant, empty, spec, family_of(spec, model_config).target_modules)


def _build_callbacks(config: RunConfig) -> dict[str, Any]:
    """The config's callbacks by name, in order, without disabled nodes."""
    from transformers import TrainerCallback

    allowed = config.allow_targets
    built: dict[str, Any] = {}
    for name, node in (config.callbacks or {}).items():
        if node is None:
            continue
        callback = build(node, where=f"callbacks.{name}", allowed=allowed)
        if not isinstance(callback, TrainerCallback):
            raise UserError(
                f"{type(callback).__name__} is not a transformers.TrainerCallback", where=f"callbacks.{name}"
            )
        built[name] = callback
    return built


def build_trainer(
    config: Mapping[str, Any],
    run: RunDirectory,
    model: Any,
    inputs: Inputs,
    callbacks: Mapping[str, Any],
    more: Iterable[Any],
    tracker: Tracker,
    explicit: Iterable[str] = (),
    compute_metrics: Callable[..., Any] | None = None,
) -> Any:
    """The trainer, with its callbacks bound to the run.

    Args:
        callbacks: those of the config, by name.
        more: further callbacks, which come after them.
        tracker: started; receives every logged line.
        explicit: trainer keys set on the command line, which a callback must not override.
    """
    from transformers import PrinterCallback, ProgressCallback

    config = RunConfig.of(config)
    asked = trainer_arguments(callbacks, config.trainer, explicit)
    arguments = build_arguments(
        config.trainer,
        run,
        seed=config.seed,
        asked=asked,
        dtype=inputs.model.dtype,
        evaluates=bool(inputs.data.eval),
        allowed=config.allow_targets,
    )
    trainer = arguments.trainer()(
        model,
        arguments,
        tokenizer=inputs.tokenizer,
        train=inputs.data.train,
        evaluation=inputs.data.eval,
        callbacks=[*callbacks.values(), *more, TrackerCallback(tracker)],
        guard=Guard(config.on_nonfinite, run, inputs.data.train, inputs.tokenizer, process_group()),
        compute_metrics=compute_metrics,
    )
    for default in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(default)
    return trainer
