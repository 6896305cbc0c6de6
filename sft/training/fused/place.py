"""A job's interface to the group that it trains with: it submits its computations and waits for the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass
class Request:
    """A computation that a job requests from the group.

    Attributes:
        kind: "train" for loss and gradients, "outputs" for predictions, "wait" for nothing: it is answered when no
            other job is at `step` or before it.
        batch: padding-free.
        noise: added to the embeddings of its tokens; None for none.
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
    """The operations of a group that a job may use."""

    number: int

    def takes(self, needs: int, own: int, free: int) -> None:
        """Report the estimated bytes of this job: in total, not shared, and available."""

    def join(self, trainer: Any) -> str | None:
        """Join the group; returns the reason if this job cannot."""

    def leave(self) -> None:
        """Leave the group."""

    def ask(self, request: Request) -> Any:
        """Submit a request, which is computed together with those of the other jobs."""

    def wait(self, step: int) -> None:
        """Wait until the other jobs have reached this step."""

    def listen(self, take: Callable[[int, Any], None]) -> Callable[[], None]:
        """Forward the process's signals to this job; returns a function that stops that."""


current: ContextVar[Place | None] = ContextVar("place", default=None)
"""The group membership of the job that this thread runs; None outside of fused training."""
