"""One training step on the meta device: tensor lifetimes, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sft.kernels.cross_entropy import IGNORE, summed_loss
from sft.model.head import output_layer, output_layer_skipped, supports_logits_to_keep
from sft.training.estimate.blueprint import Blueprint
from sft.training.estimate.standins import OnMeta, computing_on, quantized_layers
from sft.training.estimate.tracker import Region, Tracker

EVALUATION_CHUNK = 1024  # of `sft.evaluation.loss`


@dataclass(frozen=True)
class Batch:
    """The shape of a batch.

    Attributes:
        rows: number of rows.
        length: tokens of each row, padding included.
        trained: tokens with a loss, in all rows together.
        masked: whether attention gets a mask of [rows, 1, length, length]: rows of different lengths, or packs.
    """

    rows: int
    length: int
    trained: int
    masked: bool = False

    def with_rows(self, rows: int) -> Batch:
        """A batch of this many rows, with the same fraction of trained tokens."""
        return Batch(rows, self.length, -(-self.trained * rows // self.rows), self.masked)

    def with_length(self, length: int) -> Batch:
        """A batch of rows of at most this many tokens, with the same fraction of trained tokens."""
        length = min(length, self.length)
        return Batch(self.rows, length, -(-self.trained * length // self.length), self.masked)


@dataclass(frozen=True)
class Machine:
    """How a step computes.

    Attributes:
        device: "cpu" or "cuda".
        autocast: the dtype of products; None for that of the weights.
        checkpointing: whether layers are recomputed in the backward pass.
        accumulation: batches per step; with more than one, gradients stay alive during the forward pass.
    """

    device: str
    autocast: torch.dtype | None = None
    checkpointing: bool = False
    accumulation: int = 1


@dataclass(frozen=True)
class Step:
    """Bytes of tensors besides weights and optimizer states.

    Attributes:
        activations: alive when the forward pass reaches the output layer.
        logits: the most that output layer, loss and their gradients add to them.
        peak: the peak of the forward and backward pass, gradients included.
        freed: total allocated and freed by the layers' forward passes.
    """

    activations: int
    logits: int
    peak: int
    freed: int = 0


class _Marked(nn.Module):
    """A layer that marks the beginning and end of its forward and backward pass."""

    def __init__(self, inner: nn.Module, index: int, tracker: Tracker) -> None:
        super().__init__()
        self.inner, self.index = inner, index
        self.__dict__["tracker"] = tracker

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the layer, marking the beginning and end of its forward and backward pass."""
        tracker, index = self.__dict__["tracker"], self.index
        tracker.mark(f"before {index}")
        if hidden.requires_grad and index == 0:
            hidden.register_hook(lambda _: tracker.mark("back 0"))
        result = self.inner(hidden, *args, **kwargs)
        out = result[0] if isinstance(result, tuple) else result
        tracker.mark(f"forward {index}")
        if out.requires_grad:
            out.register_hook(lambda _: tracker.mark(f"back {index + 1}"))
        return result


def simulate(blueprint: Blueprint, batch: Batch, machine: Machine) -> Step:
    """Run a step of a blueprint and return what it takes for the whole model; uses no random numbers."""
    tracker = Tracker()
    model = blueprint.model
    parameters = [*model.parameters(), *model.buffers()]
    inputs = _inputs(batch)
    model.train()
    functions = OnMeta(machine.device, batch.trained, machine.autocast)
    around = (
        _checkpointing(model, functions, machine.checkpointing),
        _marked(blueprint.layers, tracker),
        quantized_layers(),
        computing_on(machine.device, machine.autocast),
    )
    with torch.random.fork_rng(devices=[]), around[0], around[1], around[2], around[3]:
        for again in range(2 if machine.accumulation > 1 else 1):
            tracker.regions.clear()
            with functions, tracker:
                tracker.ignore(*parameters, *inputs.values())
                if not again:
                    tracker.mark("begin")
                    tracker.regions.clear()
                loss = _loss(model, inputs, machine.autocast)
                functions.casts.clear()
                tracker.mark("loss")
                loss.backward()
                del loss
                tracker.mark("end")
    model.zero_grad(set_to_none=True)
    return assemble(tracker.regions, blueprint.order, blueprint.footprint().gradients if again else 0)


def simulate_evaluation(blueprint: Blueprint, batch: Batch, machine: Machine) -> int:
    """Peak bytes of tensors in an evaluation batch, besides weights and optimizer states."""
    tracker, model = Tracker(), blueprint.model
    inputs = _inputs(batch)
    functions = OnMeta(machine.device, batch.trained, machine.autocast)
    model.eval()
    with torch.no_grad(), quantized_layers(), computing_on(machine.device, machine.autocast), functions, tracker:
        tracker.ignore(*model.parameters(), *model.buffers(), *inputs.values())
        tracker.mark("begin")
        wanted = inputs.pop("shift_labels") != IGNORE
        chosen = {"logits_to_keep": wanted} if supports_logits_to_keep(model) else {}
        head = output_layer(model)
        with output_layer_skipped(head):
            logits = model(**inputs, **chosen, use_cache=False).logits
        rows = logits.reshape(-1, logits.shape[-1]) if chosen else logits[wanted]
        part = (rows[:EVALUATION_CHUNK] if head is None else head(rows[:EVALUATION_CHUNK])).float()
        nn.functional.cross_entropy(part, torch.empty(len(part), dtype=torch.long, device="meta"), reduction="none")
        tracker.mark("end")
    return tracker.regions[-1].peak


def assemble(regions: list[Region], order: list[int], held: int = 0) -> Step:
    """Sequence the regions of the whole model, repeating each layer's for the layers it represents, and track live
    bytes."""
    by_name = {region.name: region for region in regions}
    count = max(order, default=-1) + 1
    forward = [by_name[name] for i in order for name in (f"before {i}", f"forward {i}") if name in by_name]
    backward = []
    for i in reversed(order):  # ends where the previous layer's backward begins
        name = f"back {i}" if f"back {i}" in by_name else "end"
        backward.append(by_name[name])
    head = [by_name["loss"], *([by_name[f"back {count}"]] if f"back {count}" in by_name else [])]
    tail = [by_name["end"]] if backward and backward[-1] is not by_name["end"] else []
    alive = peak = held
    before_head = at_head = 0
    for group in (forward, head, backward, tail):
        start = alive
        for region in group:
            peak = max(peak, alive + region.peak)
            if group is head:
                before_head, at_head = start, max(at_head, alive + region.peak - start)
            alive += region.net
    freed = sum(max(0, region.taken - region.net) for region in forward)
    return Step(activations=before_head, logits=at_head, peak=peak, freed=freed)


def _inputs(batch: Batch) -> dict[str, torch.Tensor]:
    shape = (batch.rows, batch.length)
    names = ("input_ids", "shift_labels", "attention_mask")
    inputs = {name: torch.empty(shape, dtype=torch.long, device="meta") for name in names}
    if batch.masked:
        inputs["attention_mask"] = torch.empty(
            (batch.rows, 1, batch.length, batch.length), dtype=torch.bool, device="meta"
        )
    return inputs


def _loss(model: Any, inputs: dict[str, torch.Tensor], autocast: torch.dtype | None) -> torch.Tensor:
    def called(**given: Any) -> Any:
        outputs = model(**given)
        if autocast is not None:  # accelerate upcasts the outputs of an autocast model
            outputs.logits = outputs.logits.float()
        return outputs

    return summed_loss(called, inputs, supports_logits_to_keep(model), output_layer(model))[0]  # type: ignore[arg-type]


@contextmanager
def _checkpointing(model: Any, functions: OnMeta, on: bool) -> Iterator[None]:
    """Gradient checkpointing as the Trainer enables it; recomputation uses the substitutes too."""
    if not on:
        yield
        return
    contexts = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), _again(functions))}
    model.activation_checkpointing_enable(contexts)
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


@contextmanager
def _again(functions: OnMeta) -> Iterator[None]:
    """Recompute a layer; autocast drops its cached weight copies afterwards."""
    try:
        with functions:
            yield
    finally:  # torch stops the recomputation by an exception once it has all it needs
        functions.casts.clear()


@contextmanager
def _marked(layers: nn.ModuleList, tracker: Tracker) -> Iterator[None]:
    plain = list(layers)
    for index, layer in enumerate(plain):
        layers[index] = _Marked(layer, index, tracker)
    try:
        yield
    finally:
        for index, layer in enumerate(plain):
            layers[index] = layer
