"""Requests of several jobs computed in one pass, within a limit of tokens; on the CPU in concurrent parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from sft.data.batches.parts import MAX_IMBALANCE, balanced
from sft.model.base import base_of
from sft.model.head import output_layer_skipped
from sft.model.view import original_of
from sft.training.fused.model import JointModel, Share
from sft.training.fused.place import Request
from sft.training.fused.switch import ProcessState
from sft.training.layout.microbatches import ParallelParts

Asked = tuple[int, Request, ProcessState | None]


class Passes:
    """Computes the requests of the jobs of a group.

    Args:
        max_tokens: per pass, without padding; None for no limit. A job's own batch is never split.
    """

    def __init__(self, max_tokens: int | None = None) -> None:
        self.max_tokens = max_tokens
        self.joint: JointModel | None = None
        self.base: Any = None
        self.trainers: dict[int, Any] = {}
        self.threads: ParallelParts | None = None

    def join(self, job: int, trainer: Any) -> None:
        """Compute a job's requests from now on; the first job's base is used for all."""
        base = original_of(base_of(trainer.model))
        if self.joint is None:
            self.base, self.joint = base, JointModel(base, checkpointing=bool(trainer.args.gradient_checkpointing))
        self.joint.join(job, trainer.model)
        self.trainers[job] = trainer

    def leave(self, job: int) -> None:
        """Stop computing for this job; the last one releases everything."""
        self.trainers.pop(job, None)
        if self.joint is not None:
            self.joint.leave(job)
        if not self.trainers:
            self.joint = self.base = None

    def close(self) -> None:
        """End the threads."""
        if self.threads is not None:
            self.threads.close()

    def within_bounds(self, requests: Sequence[tuple[int, Request | None]]) -> Iterator[set[int]]:
        """Groups of jobs whose requests are computed together, in order."""
        some: set[int] = set()
        tokens = 0
        for job, request in requests:
            own = request.tokens if request is not None else 0
            if some and self.max_tokens and tokens + own > self.max_tokens:
                yield some
                some, tokens = set(), 0
            some.add(job)
            tokens += own
        if some:
            yield some

    def shrink(self, requests: Sequence[Request]) -> None:
        """After running out of memory in a pass of these requests, limit later ones to half of their tokens."""
        self.max_tokens = max(1, sum(request.tokens for request in requests) // 2)

    def compute(self, asked: Sequence[Asked]) -> list[Any]:
        """Answers to requests of one kind, in their order: (loss, gradients) for "train", predictions for "outputs"."""
        assert self.joint is not None
        first = self.trainers[asked[0][0]]
        shares = [
            Share(job, request.batch, self._rng_state(job, state), request.noise) for job, request, state in asked
        ]
        groups = self._groups(shares, splits=asked[0][1].kind == "train")
        context = first.accelerator.autocast
        with output_layer_skipped(self.joint.head):
            if asked[0][1].kind == "outputs":
                outputs = {
                    share.job: found
                    for group, each in zip(groups, self._run(partial(self._outputs, context), groups), strict=True)
                    for share, found in zip(group, each, strict=True)
                }
                return [outputs[job] for job, *_ in asked]
            return self._sums(asked, groups, self._run(partial(self._trained, context), groups))

    def _outputs(self, context: Any, group: list[Share]) -> list[torch.Tensor]:
        assert self.joint is not None
        return self.joint.outputs(group, context)

    def _trained(self, context: Any, group: list[Share]) -> Any:
        assert self.joint is not None
        return self.joint.losses_and_gradients(group, context)

    def _run(self, does: Any, groups: list[list[Share]]) -> list[Any]:
        if len(groups) == 1:
            return [does(groups[0])]
        assert self.threads is not None
        return self.threads.run(does, groups)

    def _sums(self, asked: Sequence[Asked], groups: list[list[Share]], found: list[Any]) -> list[Any]:
        """For each job the loss and gradients summed over all its shares, in the order of the groups."""
        losses: dict[int, list[torch.Tensor]] = {}
        gradients: dict[int, list[torch.Tensor | None]] = {}
        for group, (sums, own) in zip(groups, found, strict=True):
            for share, loss in zip(group, sums, strict=True):
                losses.setdefault(share.job, []).append(loss)
            for job, some in own.items():
                gradients[job] = (
                    [_sum(*both) for both in zip(gradients[job], some, strict=True)] if job in gradients else some
                )
        return [(torch.stack(losses[job]).sum(), gradients[job]) for job, *_ in asked]

    def _rng_state(self, job: int, state: ProcessState | None) -> Any:
        """The job's random state, if its adapter or its embeddings use random numbers."""
        trainer = self.trainers[job]
        dropout = any(isinstance(each, torch.nn.Dropout) and each.p > 0 for each in trainer.model.modules())
        return state.drawing if state is not None and (trainer.noise is not None or dropout) else None

    def _groups(self, shares: list[Share], splits: bool) -> list[list[Share]]:
        """The shares in as many groups as are computed concurrently."""
        count = min(trainer.parts for trainer in (self.trainers[share.job] for share in shares))
        if count == 1 or any(share.draws is not None for share in shares):
            return [shares]
        if self.threads is None or self.threads.count != count:
            self.close()
            self.threads = ParallelParts(count, self.trainers[shares[0].job].flops)
        for pieces in (shares, self._pieces(shares)) if splits else (shares,):
            groups = [[pieces[at] for at in group] for group in balanced([piece.tokens for piece in pieces], count)]
            loads = [sum(piece.tokens for piece in group) for group in groups]
            if all(groups) and max(loads) * count <= MAX_IMBALANCE * sum(loads):
                return groups
        return [shares]

    def _pieces(self, shares: Sequence[Share]) -> list[Share]:
        """Each share's documents split into parts, if there are enough of them."""
        assert self.threads is not None
        return [
            Share(share.job, part, share.draws, share.noise)
            for share in shares
            for part in self.threads.parts(share.batch)
        ]


def _sum(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    return second if first is None else first if second is None else first + second
