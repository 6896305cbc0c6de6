"""The documents of a batch on the CPU in parts that are computed at the same time, each on its share of the cores.

A step of a small model is thousands of small operations. Where all cores join in each of them they wait for each other at
every end, and for the one that runs Python in between. Here each thread takes some of the batch's documents through the
forward and the backward pass by itself; the gradients are added at the end, in the order of the parts, so the sum is the
same each time. It is the batch's own loss and gradient: documents do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from functools import partial
from itertools import pairwise
from threading import Barrier
from typing import Any, TypeVar

import torch

from sft.data.batches.parts import split_documents
from sft.data.documents import IGNORE
from sft.kernels.cross_entropy import loss_of, outputs_of
from sft.kernels.lowrank import autocast_dtype
from sft.model.head import left_out
from sft.training.work import Work, pairs

FEW = 0.1  # share of the weights: each part has gradients of its own, all alive at once

Part = dict[str, Any]
Given = TypeVar("Given")
Found = TypeVar("Found")


def parts_for(asked: int | str, model: Any) -> int:
    """In how many parts to compute a batch of a model that may be computed so; called under the context to compute in.

    Args:
        asked: `trainer.cpu_parts`; `auto` is two, where there are two cores, few weights are trained, in fp32, and the
            others are used as they lie there: each part would unpack or cast them for itself.
    """
    if asked != "auto":
        return int(asked)
    cast = autocast_dtype("cpu")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    others = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    count, rest = (sum(each.numel() for each in parameters) for parameters in (trained, others))
    few = count <= FEW * (count + rest) and all(parameter.dtype is torch.float32 for parameter in trained)
    ready = all(parameter.is_floating_point() and parameter.dtype is (cast or parameter.dtype) for parameter in others)
    return 2 if few and ready and torch.get_num_threads() > 1 else 1


@contextmanager
def computed_in(count: int, work: Work | None) -> Iterator[SideBySide | None]:
    """Threads for so many parts, for the time of the block; None for one."""
    threads = SideBySide(count, work) if count > 1 else None
    try:
        yield threads
    finally:
        if threads is not None:
            threads.close()


class SideBySide:
    """Threads for the parts of a batch, each with its share of the cores; `close` ends them.

    Args:
        count: parts.
        work: what the model's training needs, by which parts are balanced; None: by tokens.
    """

    def __init__(self, count: int, work: Work | None) -> None:
        self.count, self.work = count, work
        cores, ready = torch.get_num_threads(), Barrier(count)
        self._pool = ThreadPoolExecutor(count, "part", _take_cores, (max(1, cores // count),))
        try:
            self.run(lambda _: ready.wait(), range(count))
        except BaseException:  # the system has no more threads: those that wait would wait for ever
            ready.abort()
            raise
        torch.set_num_threads(cores)  # threads that begin later take the number that was set last

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def parts(self, batch: Mapping[str, Any]) -> list[Part]:
        """The parts of a batch; the batch itself where it is not worth cutting."""
        borders = batch["cu_seq_lens_q"].tolist()
        wanted = (batch["shift_labels"][0] != IGNORE).cumsum(0)
        trained = [0, *(int(wanted[end - 1]) for end in borders[1:])]
        lengths = [end - start for start, end in pairwise(borders)]
        counts = [end - start for start, end in pairwise(trained)]
        return split_documents(batch, self.count, [self._cost(*each) for each in zip(lengths, counts, strict=True)])

    def _cost(self, tokens: int, trained: int) -> float:
        return self.work.operations(tokens, trained, pairs([tokens])) if self.work else float(tokens)

    def loss(self, model: Any, parts: Sequence[Part], positions: bool, head: Any) -> torch.Tensor:
        """Cross entropy summed over the trained tokens of all parts, in nats, fp32; its gradient is there already.

        Args:
            model, positions, head: as of `sft.kernels.cross_entropy.summed_loss`; called under the context to compute in.
        """
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return _Together.apply(self, model, parts, positions, head, *trained)  # type: ignore[no-any-return]

    def run(self, does: Callable[[Given], Found], parts: Sequence[Given]) -> list[Found]:
        """Do it for each part at the same time; the first part's error is raised when all have ended."""
        futures = [self._pool.submit(does, part) for part in parts]
        wait(futures)
        return [future.result() for future in futures]


class _Together(torch.autograd.Function):
    """Gradients are taken part by part in the forward pass, and only scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, threads: SideBySide, model: Any, parts: Any, positions: bool, head: Any, *trained: Any
    ) -> torch.Tensor:
        """The summed loss; the sums of the parts' gradients are kept for `backward`."""
        computing, applied = _computing(), copy(head)  # which stays a layer while the model's own is left out
        with left_out(head):
            found = threads.run(partial(_loss_and_slopes, model, positions, applied, computing, trained), parts)
        ctx.save_for_backward(*(_sum(slopes) for slopes in zip(*(slopes for _, slopes in found), strict=True)))
        return torch.stack([loss for loss, _ in found]).sum()

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:  # type: ignore[override]
        """The kept gradients times that of the loss, a scalar."""
        slopes = [None if slope is None else slope * outputs[0] for slope in ctx.saved_tensors]
        return (None, None, None, None, None, *slopes)


def _take_cores(count: int) -> None:
    """Let this thread's operations run on so many cores."""
    torch.get_num_threads()  # settles the thread's number, which would undo the next line when first used
    torch.set_num_threads(count)


def _computing() -> Callable[[], AbstractContextManager[Any]]:
    """The autocast of this thread, for others: it is of a thread alone."""
    on, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return lambda: torch.autocast("cpu", dtype, enabled=on)


def _loss_and_slopes(model: Any, positions: bool, head: Any, computing: Any, trained: Any, part: Part) -> Any:
    """A part's loss, and the gradients of the trained parameters."""
    with torch.enable_grad():
        with computing():
            loss = loss_of(outputs_of(model, part, positions), part, positions, head)
        return loss.detach(), torch.autograd.grad(loss, trained, allow_unused=True)


def _sum(slopes: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """In their order; None where no part has any."""
    there = [slope for slope in slopes if slope is not None]
    # not in place: a gradient may be one number spread out
    return sum(there[1:], start=there[0]) if there else None
