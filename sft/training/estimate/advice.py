"""Overrides that would make a run fit: those that `sft.training.memory` suggests, each estimated."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf import OmegaConf

from sft.config.paths import conf_dir
from sft.config.run_config import RunConfig
from sft.run.directory import RunDirectory
from sft.run.memory import DeviceMemory
from sft.training.estimate.estimate import Estimate, Estimator, fits
from sft.training.estimate.step import Batch
from sft.training.memory import training_remedies


@dataclass(frozen=True)
class Advice:
    """One or more overrides, and the memory the run would need with them.

    Attributes:
        overrides: as on the command line.
        needs: bytes.
        fits: whether that much is available.
    """

    overrides: str
    needs: int
    fits: bool


def advise(
    config: RunConfig,
    run: RunDirectory,
    place: DeviceMemory,
    batch: Batch,
    evaluation: Batch | None,
    model_config: Any,
) -> list[Advice]:
    """Single overrides that help, most effective first; if none is sufficient, a sufficient combination comes last.

    Args:
        config: resolved, plain.
        run: tells what is known of its rows.
        place: the device memory that it has to fit into.
        batch, evaluation: the batches that were estimated.
        model_config: the model's own config.
    """
    overrides = [override for override, _ in training_remedies(config, run) if "auto_find" not in override]
    drawn, found = Estimator(config, place.device, model_config), []
    for override in overrides:
        estimate = _with(config, [override], place, (batch, None), model_config, drawn)
        found.append(Advice(override, estimate.needs, fits(estimate, place)))
    found.sort(key=lambda advice: advice.needs)
    if found and not any(advice.fits for advice in found):
        together: list[str] = []
        for override in [advice.overrides for advice in found]:
            together.append(override)
            estimate = _with(config, together, place, (batch, None), model_config, drawn)
            if fits(estimate, place):
                break
        if len(together) > 1:
            found.append(Advice(" ".join(together), estimate.needs, fits(estimate, place)))
    return found


def _with(
    config: RunConfig,
    overrides: list[str],
    place: DeviceMemory,
    batches: tuple[Batch, Batch | None],
    model_config: Any,
    estimator: Estimator,
) -> Estimate:
    changed = config.plain()
    batch, evaluation = batches
    for part in " ".join(overrides).split():
        key, _, value = part.partition("=")
        _set(changed, key, value)
        if key == "trainer.per_device_train_batch_size":
            batch = batch.with_rows(int(value))
        if key == "dataset.max_length":
            batch = batch.with_length(int(value))
            evaluation = evaluation.with_length(int(value)) if evaluation else None
    return _estimator(RunConfig.of(changed), place, model_config, estimator).estimate(batch, evaluation)


def _estimator(config: RunConfig, place: DeviceMemory, model_config: Any, drawn: Estimator) -> Estimator:
    """The existing estimator if the model is unchanged: building the model takes most of an estimate's time."""
    if all(config.get(key) == drawn.config.get(key) for key in ("model", "quant", "lora")):
        same = copy.copy(drawn)
        same.config = config
        return same
    return Estimator(config, place.device, model_config)


def _set(config: dict[str, Any], key: str, value: str) -> None:
    if "." not in key:  # an option of a group
        node = OmegaConf.create({**config, key: OmegaConf.load(conf_dir() / key / f"{value}.yaml")})
        plain = OmegaConf.to_container(node, resolve=True)
        assert isinstance(plain, dict)
        config[key] = plain[key]
        return
    *path, last = key.split(".")
    for name in path:
        config = config[name]
    config[last] = yaml.safe_load(value)
