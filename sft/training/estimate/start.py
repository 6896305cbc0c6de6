"""The memory estimate at the start of a run: logged, compared with what is available, used for gradient
checkpointing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sft.config.checks.conflicts import shards_weights
from sft.config.errors import UserError
from sft.config.run_config import RunConfig
from sft.model.tokens import added_rows
from sft.run.directory import RunDirectory
from sft.run.memory import DeviceMemory, device_memories
from sft.training.estimate.advice import advise
from sft.training.estimate.estimate import Estimate, Estimator, fits, longest_batch, with_lengths
from sft.training.estimate.report import gib
from sft.training.estimate.step import Batch
from sft.training.fused.place import current
from sft.training.inputs import Inputs

log = logging.getLogger(__name__)

CERTAIN_SHARE = 0.85  # a run is refused only where this share of its estimate does not fit


def check_memory(config: RunConfig, inputs: Inputs, record: Mapping[str, Any], run: RunDirectory) -> RunConfig:
    """Log the memory a run needs, and resolve `trainer.gradient_checkpointing=auto`.

    Args:
        config: resolved, plain.
        inputs: the prepared rows.
        record: run.json's content; a resumed run keeps what was resolved when it was started.
        run: its directory.

    Returns:
        The config with gradient_checkpointing true or false: true if the run fits only that way.

    Raises:
        UserError: it cannot fit; the message says what would help (`estimate.enforce=false` starts it anyway).
    """
    if shards_weights(config):
        log.info("memory: not estimated: the weights are sharded, and each process gathers one layer at a time")
        asked, settled = config.trainer.get("gradient_checkpointing"), record.get("gradient_checkpointing")
        return _with_checkpointing(config, bool(settled) if asked == "auto" else asked)
    given, config = config, with_lengths(config)
    trainer, place = config.trainer, device_memories()[0]
    shrinks = bool(trainer.get("auto_find_batch_size"))
    batch = longest_batch([inputs.data.train], 1 if shrinks else int(trainer.get("per_device_train_batch_size") or 8))
    evaluation = longest_batch(list(inputs.data.eval.values()), int(trainer.get("per_device_eval_batch_size") or 8))
    assert batch is not None
    asked, settled = trainer.get("gradient_checkpointing"), record.get("gradient_checkpointing")
    try:
        estimator = Estimator(config, place.device, inputs.model_config, rows=sorted(added_rows(inputs.tokenizer)))
        estimate = estimator.estimate(batch, evaluation, settled if asked == "auto" else None)
        if asked == "auto" and settled is None and not fits(estimate, place):
            estimate = _checkpointed(estimator, batch, evaluation, estimate)
    except UserError:
        raise
    except Exception as error:  # a model that does not run on the meta device may still be trained
        log.warning("memory: not estimated (%s: %s)", type(error).__name__, error)
        return _with_checkpointing(given, bool(settled) if asked == "auto" else asked)
    log.info("%s", summary_line(estimate, place))
    if (among := current.get()) is not None:
        among.takes(estimate.needs, own_bytes(estimate), place.free)
    if not fits(estimate, place, CERTAIN_SHARE) and config.estimate.enforce:
        found = advise(config, run, place, batch, evaluation, inputs.model_config)
        raise does_not_fit(estimate, place, [(each.overrides, each.needs, each.fits) for each in found])
    return _with_checkpointing(given, estimate.checkpointing if asked == "auto" else asked)


def own_bytes(estimate: Estimate) -> int:
    """What a run takes that shares its base model and its process with others."""
    trained = estimate.adapter + estimate.gradients + estimate.optimizer
    return trained + estimate.activations + estimate.logits


def summary_line(estimate: Estimate, place: DeviceMemory) -> str:
    """One line on the memory a run needs."""
    parts = {
        "weights": estimate.weights + estimate.quantized,
        "adapter": estimate.adapter,
        "gradients": estimate.gradients,
        "optimizer": estimate.optimizer,
        "activations": estimate.activations,
        "logits": estimate.logits,
    }
    listed = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items() if size >= 5 << 20)
    return f"memory: about {gib(estimate.peak)} of {gib(place.free)}" + f" ({listed})" * bool(listed)


def does_not_fit(estimate: Estimate, place: DeviceMemory, advice: list[tuple[str, int, bool]]) -> UserError:
    """The error for a run that cannot fit."""
    helps = [f"{overrides}  ({gib(needs)}{'' if enough else ', not enough'})" for overrides, needs, enough in advice]
    lines = [*helps, "estimate.enforce=false to try anyway"]
    return UserError(
        f"the run needs about {gib(estimate.needs)}, and {gib(place.free)} is available ({place.name}: {place.limit})",
        where="memory",
        remedy="\n     ".join(lines),
    )


def _checkpointed(estimator: Estimator, batch: Batch, evaluation: Batch | None, before: Estimate) -> Estimate:
    found = estimator.estimate(batch, evaluation, checkpointing=True)
    if found.needs >= before.needs:
        return before
    log.info(
        "gradient checkpointing is on: the run needs about %s without it, %s with it",
        gib(before.needs),
        gib(found.needs),
    )
    return found


def _with_checkpointing(config: RunConfig, checkpointing: Any) -> RunConfig:
    return config.with_(trainer=config.trainer.with_(gradient_checkpointing=checkpointing))
