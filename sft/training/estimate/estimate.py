"""The memory a run needs: weights, adapter, gradients, optimizer, activations and logits, and their peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from sft.config.build import build
from sft.config.run_config import RunConfig
from sft.data.documents import Rows
from sft.data.spec import Dataset
from sft.model.dtype import autocast_dtype, resolve_dtype
from sft.model.facts import family_of
from sft.model.load import load_config
from sft.model.spec import Model
from sft.run.memory import DeviceMemory
from sft.training.estimate.blueprint import Blueprint, build_blueprint
from sft.training.estimate.optimizer import state_bytes, step_bytes
from sft.training.estimate.step import Batch, Machine, simulate, simulate_evaluation
from sft.training.layout.microbatches import number_of_parts

LIBRARIES = 650 << 20  # Python, torch and the rest of what a run imports, resident; of the process's memory alone
# The part of the tensors freed in the forward pass that the C library's heap cannot reuse: torch requests aligned
# memory, and the hole of a freed tensor is too small for the next of its size. Recomputed layers allocate the same
# tensors twice, in the same holes. Measured, see docs/estimate.md.
HOLES, HOLES_AGAIN = 0.2, 0.1
CONTEXT = 600 << 20  # CUDA's own memory, besides what torch's allocator hands out


@dataclass(frozen=True)
class Estimate:
    """Bytes of each part and at the peak, for one process on one device.

    Attributes:
        parameters: number of parameters of the base.
        trained_parameters: number of trained parameters.
        weights: the base's weights that are not quantized.
        quantized: the base's weights in 4 or 8 bits.
        adapter: trained weights besides the base.
        gradients: of all trained parameters.
        optimizer: its states.
        activations: kept by the forward pass for the backward pass.
        logits: the most that output layer and loss add.
        process: the interpreter and libraries; 0 on a GPU.
        holes: unusable holes in the process's heap; 0 on a GPU.
        mapped: the weights file, which a quantized model on the CPU keeps mapped; reclaimed when memory is short.
        step: the peak of a training step.
        evaluation: the peak of an evaluation batch, without `process`; 0 if there is none.
        peak: the overall peak: of the process's memory, or of the GPU's allocator.
        batch: rows, length, trained tokens of the longest batch.
        checkpointing: whether activations are recomputed.
        device: "cpu" or "cuda".
    """

    parameters: int
    trained_parameters: int
    weights: int
    quantized: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    process: int
    holes: int
    mapped: int
    evaluation: int
    peak: int
    batch: Batch
    checkpointing: bool
    device: str

    @property
    def needs(self) -> int:
        """Memory that must be free on the device: the peak without reclaimable pages, plus CUDA's own memory on a
        GPU."""
        return self.peak - self.mapped + (CONTEXT if self.device == "cuda" else 0)

    def to_json(self) -> dict[str, Any]:
        """All figures as plain data."""
        return {**asdict(self), "needs": self.needs}


class Estimator:
    """Estimates for one config, whose model is built once.

    Args:
        config: resolved, plain.
        device: "cpu" or "cuda".
        model_config: the model's own config, if it is already loaded.
        rows: embedding rows that are trained besides the adapter.

    Raises:
        UserError: the model's config cannot be found, or the adapter cannot be built over it.
    """

    def __init__(self, config: RunConfig, device: str, model_config: Any = None, rows: Any = ()) -> None:
        allowed = config.allow_targets
        self.config, self.device = config, device
        self.model: Model = build(config.model, where="model", allowed=allowed)
        own = model_config if model_config is not None else load_config(self.model)
        quant = build(config.quant, where="quant", allowed=allowed)
        lora = build(config.lora, where="lora", allowed=allowed)
        targets = family_of(self.model, own).target_modules
        stored = getattr(own, "dtype", None) or torch.float32  # building the model writes its own precision there
        self.blueprint: Blueprint = build_blueprint(self.model, own, quant, lora, targets=targets, rows=rows)
        self.held = self.blueprint.footprint()
        self.mapped = self._mapped(stored) if quant is not None and device == "cpu" else 0

    def _mapped(self, stored: torch.dtype) -> int:
        """The part of the file from which only quantized weights were read, if the others are still mapped from it."""
        if stored is not resolve_dtype(self.model.dtype):
            return 0  # the others were converted, and the file released
        return max(0, self.held.parameters * stored.itemsize - self.held.weights)

    def estimate(self, batch: Batch, evaluation: Batch | None = None, checkpointing: bool | None = None) -> Estimate:
        """Estimate for batches of this shape.

        Args:
            batch: the longest batch of training.
            evaluation: the longest of evaluation; None for no evaluation.
            checkpointing: None takes it from the config, where `auto` counts as off.
        """
        trainer, held = self.config.trainer, self.held
        on = checkpointing if checkpointing is not None else trainer.get("gradient_checkpointing") is True
        machine = Machine(
            self.device, autocast_dtype(trainer, self.model.dtype), on, trainer.get("gradient_accumulation_steps") or 1
        )
        optim = str(trainer.get("optim") or "adamw_torch_fused")
        states = state_bytes(optim, held.trained)
        step = simulate(self.blueprint, batch, machine)
        evaluated = simulate_evaluation(self.blueprint, evaluation, machine) if evaluation else 0
        base = held.weights + held.quantized + held.adapter
        resident = base + (0 if optim.startswith("paged") and self.device == "cuda" else states)
        update = held.gradients + step_bytes(optim, held.trained, self.device)
        process = LIBRARIES if self.device == "cpu" else 0
        holes = int((HOLES_AGAIN if on else HOLES) * step.freed) if self.device == "cpu" else 0
        parts = self._parts(batch, on)  # gradients of each, and chunks of logits of all but the first, come on top
        apart = parts * held.gradients + (parts - 1) * step.logits if parts > 1 else 0
        peak = resident + max(step.peak + apart + holes, update, evaluated)
        return Estimate(
            parameters=held.parameters,
            trained_parameters=held.trained_parameters,
            weights=held.weights,
            quantized=held.quantized,
            adapter=held.adapter,
            gradients=held.gradients,
            optimizer=states,
            activations=step.activations,
            logits=step.logits,
            process=process,
            holes=holes,
            mapped=self.mapped,
            evaluation=resident + evaluated if evaluation else 0,
            peak=process + self.mapped + peak,
            batch=batch,
            checkpointing=on,
            device=self.device,
        )

    def _parts(self, batch: Batch, checkpointing: bool) -> int:
        """The number of concurrent parts of a batch, as far as the config tells (see
        `sft.training.layout.microbatches`)."""
        trainer, lora = self.config.trainer, self.config.lora
        drawn = (lora is not None and lora.get("lora_dropout")) or trainer.get("neftune_noise_alpha")
        if self.device != "cpu" or checkpointing or drawn or trainer.get("torch_compile"):
            return 1
        cast = autocast_dtype(trainer, self.model.dtype)
        with torch.autocast("cpu", cast or torch.bfloat16, enabled=cast is not None):
            parts = number_of_parts(trainer.get("cpu_parts") or "auto", self.blueprint.model)
        return parts if batch.rows >= parts else 1


def configured_batch(config: RunConfig, evaluation: bool = False) -> Batch:
    """The largest batch a config allows: every row as long as `dataset.max_length`, and fully trained.

    Args:
        config: as returned by `with_lengths`.
        evaluation: for evaluation instead of training.
    """
    key = f"per_device_{'eval' if evaluation else 'train'}_batch_size"
    count = int(config.trainer.get(key) or 8)
    dataset = config.dataset
    length = dataset.max_length
    if dataset.eval_packing if evaluation else dataset.packing:
        return Batch(1, count * length, count * (length - 1))  # packs are padding-free
    return Batch(count, length, count * (length - 1))


def with_lengths(config: RunConfig) -> RunConfig:
    """The config with `dataset.max_length` and `dataset.packing` filled in with the dataset's defaults."""
    dataset: Dataset = build(config.dataset, where="dataset", allowed=config.allow_targets, _recursive_=False)
    said = {"max_length": dataset.max_length, "packing": dataset.packing, "eval_packing": dataset.eval_packing}
    return config.with_(dataset=config.dataset.with_(**said))


def evaluates(config: RunConfig) -> bool:
    """Whether the run will evaluate, as far as the config tells."""
    dataset = config.dataset
    return bool(dataset.get("eval_sources") or dataset.get("eval_fraction", 0.1))


def longest_batch(rows: Sequence[Rows], count: int) -> Batch | None:
    """The largest batch of `count` rows that could occur; None without rows."""
    rows = [part for part in rows if len(part)]
    if not rows:
        return None
    lengths = np.concatenate([part.lengths for part in rows])
    trained = np.sort(np.concatenate([part.trained for part in rows]))[-count:]
    if any(part.packs is not None for part in rows):  # packs are padding-free
        return Batch(1, int(np.sort(lengths)[-count:].sum()), int(trained.sum()))
    masked = count > 1 and bool(lengths.min() != lengths.max())
    return Batch(min(count, len(lengths)), int(lengths.max()), int(trained.sum()), masked)


def fits(estimate: Estimate, place: DeviceMemory, share: float = 1.0) -> bool:
    """Whether this fraction of an estimate's memory is available; True if nothing is known about the device."""
    return not place.total or share * estimate.needs <= place.free
