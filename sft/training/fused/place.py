"""A job's place among those that train together, as its own code sees it: it hands over what it would compute, and waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass
class Request:
    """What a job asks the others' pass to compute for it.

    Attributes:
        kind: "train" for loss and gradients, "outputs" for what the model predicts, "wait" for nothing: it is answered
            when no other job is at `step` or before it any more.
        batch: padding-free.
        noise: adds to the embeddings of its tokens; None for nothing.
        step: optimizer step of a "wait".
    """

    kind: str
    batch: Mapping[str, Any] = field(default_factory=dict)
    noise: Any = None
    step: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of the batch."""
        return int(self.batch["input_ids"].shape[1])


class Place(Protocol):
    """What a job may ask of its group."""

    number: int

    def takes(self, needs: int, own: int, free: int) -> None:
        """Tell the bytes that this job is estimated to take: in all, of its own, and what there is."""

    def join(self, trainer: Any) -> str | None:
        """Train with the others from here on; gives the reason where this job cannot."""

    def leave(self) -> None:
        """Train with the others no more."""

    def ask(self, request: Request) -> Any:
        """Have a request computed, together with those of the other jobs."""

    def wait(self, step: int) -> None:
        """Until the other jobs that train have come so far."""

    def listen(self, take: Callable[[int, Any], None]) -> Callable[[], None]:
        """Have signals to the process told to this job; gives what ends that."""


current: ContextVar[Place | None] = ContextVar("place", default=None)
"""The place of the job that this thread runs; None where a run has its process for itself."""
