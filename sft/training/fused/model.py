"""The model that computes a step of several jobs: the base once, each job's adapter on the tokens of that job.

It is a view of the base that the jobs share. Loss and gradients equal those that each job would compute alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer

from sft.data.documents import IGNORE
from sft.kernels import adapted, elementwise
from sft.kernels.cross_entropy import chunked_cross_entropy_sum, cross_entropy_sum
from sft.kernels.joint import JOINT, JointLinear, Stretch, computing, noisy_embeddings, register
from sft.model.base import base_of
from sft.model.head import output_layer, output_layer_skipped, supports_logits_to_keep
from sft.model.view import view_of

Computing = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Share:
    """The contribution of one job, or a part of its documents, to a pass.

    Attributes:
        job: its number.
        batch: padding-free, as `FlatCollator` and `SharedPrefixCollator` make it.
        draws: gives the job's own random state for the time of a block.
        noise: adds to its embeddings; None for nothing.
    """

    job: int
    batch: Mapping[str, Any]
    draws: Any = None
    noise: Any = None

    @property
    def tokens(self) -> int:
        """Tokens in the batch."""
        return int(self.batch["input_ids"].shape[1])


class JointModel:
    """A base with the adapters of the jobs in the group.

    Args:
        base: the model that they share, without any adapter.
        checkpointing: recompute activations in the backward pass.
    """

    def __init__(self, base: Any, checkpointing: bool = False) -> None:
        register()
        self.model = view_of(base)
        self.model.set_attn_implementation(JOINT)
        self.positions, self.head = supports_logits_to_keep(self.model), output_layer(self.model)
        self.applied = copy(self.head)  # stays a layer while the model's own is left out
        self.model.get_input_embeddings().register_forward_hook(noisy_embeddings)
        elementwise.install(self.model)
        if checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()
        self.trained: dict[int, list[torch.nn.Parameter]] = {}

    def join(self, job: int, model: Any) -> None:
        """Add the adapter of a job's model.

        Args:
            job: its number.
            model: a peft model over another view of the base.
        """
        for name, layer in base_of(model).named_modules():
            if isinstance(layer, LoraLayer):
                self._joint(name).layers[job] = layer
        layers = [module for module in self.model.modules() if isinstance(module, JointLinear)]
        for each, together in adapted.group(self.model, layers).items():
            each.of_one_input = together  # type: ignore[assignment]
        self.trained[job] = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def leave(self, job: int) -> None:
        """Remove a job's adapter."""
        self.trained.pop(job, None)
        for module in self.model.modules():
            if isinstance(module, JointLinear):
                module.layers.pop(job, None)

    def losses_and_gradients(
        self, shares: Sequence[Share], context: Computing
    ) -> tuple[list[torch.Tensor], dict[int, list[torch.Tensor | None]]]:
        """Each share's loss, summed over its trained tokens, and the gradients of each job's parameters.

        Args:
            context: the context of forward passes (autocast).
        """
        jobs = list(dict.fromkeys(share.job for share in shares))
        parameters = [parameter for job in jobs for parameter in self.trained[job]]
        with torch.enable_grad(), computing(_stretches(shares)):
            with context():
                losses = self._losses(shares)
            found = iter(torch.autograd.grad(torch.stack(losses).sum(), parameters, allow_unused=True))
        return [loss.detach() for loss in losses], {job: [next(found) for _ in self.trained[job]] for job in jobs}

    def outputs(self, shares: Sequence[Share], context: Computing) -> list[torch.Tensor]:
        """Without gradients: the logits of each share [predicted tokens, vocabulary], or hidden states with a
        `head`."""
        with torch.no_grad(), computing(_stretches(shares)), context(), output_layer_skipped(self.head):
            return self._at_predicted(shares)

    def _losses(self, shares: Sequence[Share]) -> list[torch.Tensor]:
        """Summed over each share's predicted tokens; `output_layer_skipped` is the caller's, for threads share the
        head."""
        losses = []
        for share, found in zip(shares, self._at_predicted(shares), strict=True):
            targets = share.batch["shift_labels"]
            targets = targets[targets != IGNORE].to(found.device)
            if self.applied is None:
                losses.append(cross_entropy_sum(found, targets))
            else:
                losses.append(chunked_cross_entropy_sum(found.float(), self.applied, targets))
        return losses

    def _at_predicted(self, shares: Sequence[Share]) -> list[torch.Tensor]:
        """The model's outputs at the predicted tokens of each share."""
        wanted = [share.batch["shift_labels"] != IGNORE for share in shares]
        where = torch.cat(wanted, 1)
        inputs = {key: torch.cat([share.batch[key] for share in shares], 1) for key in ("input_ids", "position_ids")}
        if self.positions:
            inputs["logits_to_keep"] = where
        found = self.model(**inputs, use_cache=False).logits
        found = found.reshape(-1, found.shape[-1]) if self.positions else found[where]
        return list(found.split([int(each.sum()) for each in wanted]))

    def _joint(self, name: str) -> JointLinear:
        """The layer of this name, converted to one for several jobs if necessary."""
        layer = self.model.get_submodule(name)
        if not isinstance(layer, JointLinear):
            parent, _, last = name.rpartition(".")
            layer = JointLinear(layer)
            setattr(self.model.get_submodule(parent), last, layer)
        return layer


def _stretches(shares: Sequence[Share]) -> tuple[Stretch, ...]:
    """The position of each share's tokens in the joint row."""
    found, start = [], 0
    for share in shares:
        stop = start + share.tokens
        borders = {key: value for key, value in share.batch.items() if key.startswith(("cu_seq_lens", "max_length"))}
        found.append(Stretch(share.job, start, stop, borders, share.draws, share.noise))
        start = stop
    return tuple(found)
