"""metrics.json: the final metrics of a run, under the names that leaderboards and comparisons read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sft.run.directory import RunDirectory
from sft.run.record import Status


@dataclass
class Metrics:
    """The metrics of every run; None where not measured.

    Attributes:
        status: running, finished, interrupted, failed or pruned.
        steps: optimizer steps made.
        epochs: passes over the training data, including fractions.
        train_loss: mean loss per trained token over the run's steps, in nats.
        eval_loss: the same over the evaluation data, with the saved weights.
        eval_perplexity: exp(eval_loss).
        eval_token_accuracy: share of trained tokens whose greedy prediction was correct.
        total_tokens: tokens processed in training, without padding.
        trained_tokens: tokens that counted in the loss.
        tokens_per_second: total_tokens per second of training.
        peak_memory_bytes: the accelerator's peak, or the process's without one.
        train_seconds: in the training loop, evaluation included, over all sessions.
        total_seconds: from the start of the command to its end, over all sessions.
        extra: further figures (eval_<part>_loss, eval_exact_match); they are written at the top level.
    """

    status: Status = "running"
    steps: int = 0
    epochs: float | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    eval_perplexity: float | None = None
    eval_token_accuracy: float | None = None
    total_tokens: int | None = None
    trained_tokens: int | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    train_seconds: float | None = None
    total_seconds: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All metrics flat, the named ones first; the perplexity is derived from the loss."""
        flat = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        if flat["eval_perplexity"] is None:
            flat["eval_perplexity"] = perplexity(self.eval_loss)
        return {**flat, **{key: value for key, value in self.extra.items() if key not in flat}}

    def write(self, run: RunDirectory) -> None:
        """Write metrics.json."""
        run.write_json(run.metrics_json, self.as_dict())

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Metrics:
        """The reverse of :meth:`as_dict`."""
        known = {f.name for f in fields(cls)} - {"extra"}
        given = {key: value for key, value in found.items() if key in known}
        return cls(**given, extra={key: value for key, value in found.items() if key not in known})

    @classmethod
    def read(cls, run: RunDirectory) -> Metrics | None:
        """metrics.json as it is now, None where there is none."""
        found = run.read_json(run.metrics_json)
        return cls.from_dict(found) if isinstance(found, dict) else None


def perplexity(loss: float | None) -> float | None:
    """exp(loss); None without a loss, or where it overflows."""
    if loss is None or not math.isfinite(loss) or loss > 700:
        return None
    return math.exp(loss)


def last_values(history: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The last value logged under each name, from metrics.jsonl or a trainer's log history."""
    found: dict[str, Any] = {}
    for line in history:
        found.update({key: value for key, value in line.items() if value is not None})
    return found
