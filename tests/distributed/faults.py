"""Deliberate failures in one of several processes; the tests put this directory on PYTHONPATH."""

import os
import signal

import torch
from transformers import TrainerCallback


class Fault(TrainerCallback):
    """Does it in one rank, at the beginning of one step.

    Args:
        what: "raise", "kill", "poison" (NaN weights), "agent" (SIGTERM to torchrun), or a signal's name.
        rank: which.
        step: which, from 1.
    """

    def __init__(self, what: str, rank: int = 1, step: int = 3) -> None:
        self.what, self.rank, self.step = what, rank, step

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 != self.step or int(os.environ["RANK"]) != self.rank:
            return
        if self.what == "raise":
            raise ValueError("a fault on purpose")
        if self.what == "poison":
            with torch.no_grad():
                next(weight for weight in model.parameters() if weight.requires_grad).fill_(float("nan"))
            return
        number = {"kill": signal.SIGKILL, "agent": signal.SIGTERM}.get(self.what) or getattr(signal, self.what)
        os.kill(os.getppid() if self.what == "agent" else os.getpid(), number)
