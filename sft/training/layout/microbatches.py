"""The documents of a batch on the CPU in parts that are computed concurrently, each on some of the cores.

A step of a small model is thousands of small operations. If all cores join in each of them, they wait for each other
after every one, and for the Python thread in between. Here each thread runs some of the batch's documents through the
forward and backward pass by itself; the gradients are summed at the end, in the order of the parts, so the sum is
deterministic. It is the batch's own loss and gradient, because documents do not attend to each other.
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
from sft.model.head import output_layer_skipped
from sft.training.flops import FlopsPerToken, attention_pairs

MAX_TRAINED_SHARE = 0.1  # fraction of the weights: each part has gradients of its own, all alive at once

Part = dict[str, Any]
Input = TypeVar("Input")
Output = TypeVar("Output")


def number_of_parts(asked: int | str, model: Any) -> int:
    """The number of concurrent parts for a batch; called within the autocast context of training.

    Args:
        asked: `trainer.cpu_parts`; `auto` is two if there are two cores, few weights are trained, in fp32, and the
            others are used as stored: each part would have to unpack or cast them for itself.
    """
    if asked != "auto":
        return int(asked)
    cast = autocast_dtype("cpu")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    others = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    count, rest = (sum(each.numel() for each in parameters) for parameters in (trained, others))
    few = count <= MAX_TRAINED_SHARE * (count + rest) and all(parameter.dtype is torch.float32 for parameter in trained)
    ready = all(parameter.is_floating_point() and parameter.dtype is (cast or parameter.dtype) for parameter in others)
    return 2 if few and ready and torch.get_num_threads() > 1 else 1


@contextmanager
def parallel_parts(count: int, flops: FlopsPerToken | None) -> Iterator[ParallelParts | None]:
    """Threads for this many parts, for the duration of the block; None for one part."""
    threads = ParallelParts(count, flops) if count > 1 else None
    try:
        yield threads
    finally:
        if threads is not None:
            threads.close()


class ParallelParts:
    """Threads for the parts of a batch, each with some of the cores; `close` ends them.

    Args:
        count: parts.
        flops: FLOPs of the model's training, by which parts are balanced; None: by tokens.
    """

    def __init__(self, count: int, flops: FlopsPerToken | None) -> None:
        self.count, self.flops = count, flops
        cores, ready = torch.get_num_threads(), Barrier(count)
        self._pool = ThreadPoolExecutor(count, "part", _set_threads, (max(1, cores // count),))
        try:
            self.run(lambda _: ready.wait(), range(count))
        except BaseException:  # the system is out of threads: the waiting ones would wait forever
            ready.abort()
            raise
        torch.set_num_threads(cores)  # threads started later use the number set last

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def parts(self, batch: Mapping[str, Any]) -> list[Part]:
        """The parts of a batch; the batch itself if it is not worth splitting."""
        borders = batch["cu_seq_lens_q"].tolist()
        wanted = (batch["shift_labels"][0] != IGNORE).cumsum(0)
        trained = [0, *(int(wanted[end - 1]) for end in borders[1:])]
        lengths = [end - start for start, end in pairwise(borders)]
        counts = [end - start for start, end in pairwise(trained)]
        return split_documents(batch, self.count, [self._flops(*each) for each in zip(lengths, counts, strict=True)])

    def _flops(self, tokens: int, trained: int) -> float:
        return self.flops.total(tokens, trained, attention_pairs([tokens])) if self.flops else float(tokens)

    def loss(self, model: Any, parts: Sequence[Part], positions: bool, head: Any) -> torch.Tensor:
        """Cross entropy summed over the trained tokens of all parts, in nats, fp32; its gradient is already computed.

        Args:
            model, positions, head: as of `sft.kernels.cross_entropy.summed_loss`; called within training's autocast
                context.
        """
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return _SummedParts.apply(self, model, parts, positions, head, *trained)  # type: ignore[no-any-return]

    def run(self, function: Callable[[Input], Output], parts: Sequence[Input]) -> list[Output]:
        """Run a function for all parts concurrently; an error is raised when all have finished, the first part's
        first."""
        futures = [self._pool.submit(function, part) for part in parts]
        wait(futures)
        return [future.result() for future in futures]


class _SummedParts(torch.autograd.Function):
    """Computes the gradients of all parts in the forward pass, and only scales them in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, threads: ParallelParts, model: Any, parts: Any, positions: bool, head: Any, *trained: Any
    ) -> torch.Tensor:
        """The summed loss; the sums of the parts' gradients are saved for `backward`."""
        computing, applied = _current_autocast(), copy(head)  # stays a layer while the model's own is bypassed
        with output_layer_skipped(head):
            found = threads.run(partial(_loss_and_gradients, model, positions, applied, computing, trained), parts)
        ctx.save_for_backward(
            *(_sum(gradients) for gradients in zip(*(gradients for _, gradients in found), strict=True))
        )
        return torch.stack([loss for loss, _ in found]).sum()

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> Any:  # type: ignore[override]
        """The saved gradients times that of the loss, a scalar."""
        gradients = [None if gradient is None else gradient * outputs[0] for gradient in ctx.saved_tensors]
        return (None, None, None, None, None, *gradients)


def _set_threads(count: int) -> None:
    """Let this thread's operations use this many cores."""
    torch.get_num_threads()  # initializes the thread's setting, which would undo the next line when first used
    torch.set_num_threads(count)


def _current_autocast() -> Callable[[], AbstractContextManager[Any]]:
    """This thread's autocast context, for other threads: autocast is per thread."""
    on, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return lambda: torch.autocast("cpu", dtype, enabled=on)


def _loss_and_gradients(model: Any, positions: bool, head: Any, computing: Any, trained: Any, part: Part) -> Any:
    """The loss of a part, and the gradients of the trained parameters."""
    with torch.enable_grad():
        with computing():
            loss = loss_of(outputs_of(model, part, positions), part, positions, head)
        return loss.detach(), torch.autograd.grad(loss, trained, allow_unused=True)


def _sum(gradients: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """The sum of the gradients in order; None if no part has any."""
    there = [gradient for gradient in gradients if gradient is not None]
    # not in place: a gradient may be an expanded scalar
    return sum(there[1:], start=there[0]) if there else None
