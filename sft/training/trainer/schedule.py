"""The learning rate schedule: that of the current config, evaluated at the current step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


def last_rate(trainer: Mapping[str, Any], steps: int) -> float:
    """The rate at the end of a schedule over this many steps, as a fraction of `learning_rate`.

    Args:
        trainer: the config's trainer node.
    """
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=float(trainer.get("learning_rate") or 5e-5))
    scheduler = get_scheduler(
        str(trainer.get("lr_scheduler_type") or "linear"),
        optimizer,
        num_warmup_steps=0,
        num_training_steps=steps,
        scheduler_specific_kwargs=dict(trainer.get("lr_scheduler_kwargs") or {}),
    )
    return float(scheduler.lr_lambdas[0](steps)) if isinstance(scheduler, LambdaLR) else 1.0


def held_after(scheduler: Any, steps: int) -> None:
    """Hold the rate of step `steps` for all later ones: a cosine would rise again after its end."""
    if isinstance(scheduler, LambdaLR):
        scheduler.lr_lambdas = [_held(function, steps) for function in scheduler.lr_lambdas]


def set_rates(optimizer: Any, scheduler: Any, peaks: list[float]) -> None:
    """Set the optimizer's rates to those of the schedule at its current step.

    A loaded state contains the peaks and the rate of the earlier config; with an unchanged config these are the same
    numbers.

    Args:
        peaks: `learning_rate` of each group of parameters.
    """
    if not isinstance(scheduler, LambdaLR):
        return
    scheduler.base_lrs = list(peaks)
    for group, peak, share in zip(optimizer.param_groups, peaks, scheduler.lr_lambdas, strict=True):
        rate = peak * share(scheduler.last_epoch)
        group["initial_lr"] = peak
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def _held(function: Callable[[int], float], steps: int) -> Callable[[int], float]:
    def share(step: int) -> float:  # a plain function: torch would write an object's attributes into the checkpoint
        return function(min(step, steps))

    return share
