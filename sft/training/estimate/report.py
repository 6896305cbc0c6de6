"""The report of `sft.estimate`: the parts, the peak, the available memory, and what would help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.config.run_config import RunConfig
from sft.config.text import byte_size
from sft.model.load import load_config
from sft.run.directory import RunDirectory
from sft.run.memory import DeviceMemory, device_memories
from sft.training.estimate.advice import Advice, advise
from sft.training.estimate.estimate import (
    Estimate,
    Estimator,
    configured_batch,
    evaluates,
    fits,
    longest_batch,
    with_lengths,
)
from sft.training.estimate.step import Batch

WIDTH = 14


@dataclass(frozen=True)
class EstimateReport:
    """What `sft.estimate` prints.

    Attributes:
        estimate: of one process.
        device_memories: devices on which it could run.
        advice: overrides that would make it fit; empty if it does.
        measured: the measured peak in bytes, None if not requested.
    """

    estimate: Estimate
    device_memories: list[DeviceMemory]
    advice: list[Advice]
    measured: int | None = None

    def __str__(self) -> str:
        return "\n".join([*self._parts(), "", *self._against(), *self._measured()])

    def to_json(self) -> dict[str, Any]:
        """The whole report as plain data; sizes in bytes."""
        return {
            "estimate": self.estimate.to_json(),
            "places": [vars(place) for place in self.device_memories],
            "fits": fits(self.estimate, self.device_memories[0]),
            "advice": [vars(advice) for advice in self.advice],
            "measured": self.measured,
        }

    def _parts(self) -> list[str]:
        e, b = self.estimate, self.estimate.batch
        trained = f"{e.trained_parameters:,} of {e.parameters:,}"
        rows = f"{b.rows} x {b.length:,} tokens, {b.trained:,} of them trained"
        checkpointing = "computed again in the backward pass" if e.checkpointing else "all kept"
        table = [
            ("weights", e.weights, f"{e.parameters:,} parameters" if not e.quantized else "not quantized"),
            ("quantized", e.quantized, f"of {e.parameters:,} parameters" if e.quantized else ""),
            ("adapter", e.adapter, ""),
            (
                "gradients",
                e.gradients,
                f"{trained} parameters train" if not e.adapter else f"{e.trained_parameters:,} parameters train",
            ),
            ("optimizer", e.optimizer, ""),
            ("activations", e.activations, f"{rows}; {checkpointing}"),
            ("logits", e.logits, "with their gradients, at trained tokens"),
            ("process", e.process, "Python and libraries"),
            ("holes", e.holes, "of the heap, beside the tensors"),
            ("mapped file", e.mapped, "of the weights; gives way where memory is short"),
        ]
        lines = [f"{name:<{WIDTH}}{gib(size):>12}  {why}".rstrip() for name, size, why in table if size]
        if e.evaluation:
            lines.append(f"{'(evaluation)':<{WIDTH}}{gib(e.evaluation):>12}  the most in evaluation, weights among it")
        return [*lines, f"{'peak':<{WIDTH}}{gib(e.peak):>12}  not all of it lives at once"]

    def _against(self) -> list[str]:
        lines = []
        for place in self.device_memories:
            verdict = "fits" if fits(self.estimate, place) else "does not fit"
            lines.append(f"{place.name}: {gib(place.free)} of {gib(place.total)} free ({place.limit}): {verdict}")
        if self.advice:
            width = max(len(advice.overrides) for advice in self.advice)
            lines += ["", "with"]
            for advice in self.advice:
                verdict = "fits" if advice.fits else "not enough"
                lines.append(f"  {advice.overrides:<{width}}  {gib(advice.needs):>12}  {verdict}")
        return lines

    def _measured(self) -> list[str]:
        if self.measured is None:
            return []
        off = self.estimate.peak / self.measured - 1
        return ["", f"predicted {gib(self.estimate.peak)}, measured {gib(self.measured)}: {off:+.1%}"]


def gib(size: int) -> str:
    """Bytes as text."""
    return byte_size(size, digits=2, gib_from=10 << 20)


def estimate_report(config: Mapping[str, Any], rows: bool = False, measured: bool = False) -> EstimateReport:
    """Estimate a resolved config.

    Args:
        rows: read the dataset to find its longest batch.
        measured: run two training steps and measure.

    Raises:
        UserError: a mistake in config, model or data.
    """
    from sft.config.build import build

    config = with_lengths(RunConfig.of(config))
    found = device_memories()
    model_config = load_config(build(config.model, where="model", allowed=config.allow_targets))
    batch, evaluation = _batches(config, rows)
    estimator = Estimator(config, found[0].device, model_config)
    estimate = estimator.estimate(batch, evaluation)
    advice = []
    if not fits(estimate, found[0]):
        advice = advise(config, RunDirectory(Path("none")), found[0], batch, evaluation, model_config)
    real = None
    if measured:
        from sft.training.estimate.measure import measure

        real = measure(config, batch, estimate.checkpointing)
    return EstimateReport(estimate, found, advice, real)


def _batches(config: RunConfig, rows: bool) -> tuple[Batch, Batch | None]:
    if not rows:
        return configured_batch(config), configured_batch(config, evaluation=True) if evaluates(config) else None
    from sft.training.inputs import prepare_inputs

    data = prepare_inputs(config).data
    trainer = config.trainer
    batch = longest_batch([data.train], int(trainer.get("per_device_train_batch_size") or 8))
    assert batch is not None  # preparing refuses a dataset without rows
    return batch, longest_batch(list(data.eval.values()), int(trainer.get("per_device_eval_batch_size") or 8))
