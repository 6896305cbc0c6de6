"""The interface of a judge: a prompt in, a text of the requested form out, or a CallFailed; and its settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sft.config.errors import UserError, out_of_range, raise_all


class Judge(Protocol):
    """A model that answers questions about answers.

    Attributes:
        name: for messages: "gemini-2.5-flash".
        settings: everything beside the prompt that its answers depend on; part of the cache's key.
        parallel: whether calls may run concurrently.
    """

    name: str
    parallel: bool

    @property
    def settings(self) -> Mapping[str, Any]:
        """See above."""

    def check(self) -> None:
        """Check that it can be asked at all, before anything else is computed.

        Raises:
            UserError: no key, a key that is refused, a service that cannot be reached, no such model.
        """

    def reply(self, prompt: str, schema: Mapping[str, Any] | None = None) -> str:
        """Answer a prompt.

        Args:
            prompt: the whole question.
            schema: the JSON schema that the answer should follow; None for plain text.

        Raises:
            CallFailed: there is no answer.
        """


class CallFailed(Exception):
    """A call that gave no answer.

    Args:
        message: the reason, in the service's words if it gave one; never contains a key.
        again: whether another attempt may succeed.
        after: seconds that the service asks to wait before that.
        fatal: whether every other call would fail in the same way (a refused key, no such model).
    """

    def __init__(self, message: str, *, again: bool, after: float | None = None, fatal: bool = False) -> None:
        super().__init__(message)
        self.again, self.after, self.fatal = again, after, fatal


METRICS = ("correctness", "coherence", "relevancy", "context_consistency", "hallucination")


@dataclass
class JudgeSpec(ABC):
    """Settings that all judges share.

    Args:
        model: the judge's model.
        metrics: what is judged: correctness, coherence, relevancy, context_consistency, hallucination.
        scorer: `sft` asks one question per metric and row; `deepeval` uses DeepEval's metrics with this judge.
        temperature: of the judge's answers; null leaves it to the service.
        max_tokens: longest answer of the judge, thinking included.
        timeout: seconds without data after which a call has failed.
        retries: further attempts after a call that failed, was refused temporarily, or gave an invalid verdict.
        backoff: seconds before the first retry; doubled each time, at most a minute, less a random part.
        requests_per_minute: calls that are started per minute, null for no limit.
        concurrency: concurrent calls.
        cache: a directory for the judge's answers; null for the user's cache. The same question is asked only once.
    """

    model: str | None = None
    metrics: list[str] = field(default_factory=lambda: list(METRICS))
    scorer: Literal["sft", "deepeval"] = "sft"
    temperature: float | None = 0.0
    max_tokens: int = 4096
    timeout: float = 60.0
    retries: int = 6
    backoff: float = 1.0
    requests_per_minute: float | None = None
    concurrency: int = 4
    cache: str | None = None

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            UserError: all faults at once.
        """
        rules = {
            "temperature": (self.temperature is None or self.temperature >= 0, "0 or more"),
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "timeout": (self.timeout > 0, "more than 0 seconds"),
            "retries": (self.retries >= 0, "0 or more"),
            "backoff": (self.backoff >= 0, "0 seconds or more"),
            "requests_per_minute": (
                self.requests_per_minute is None or self.requests_per_minute > 0,
                "more than 0, or null",
            ),
            "concurrency": (1 <= self.concurrency <= 64, "1 to 64"),
        }
        raise_all(out_of_range(self, rules, "judge.") + self._metric_faults())

    @abstractmethod
    def open(self) -> Judge:
        """The judge itself; nothing is called or loaded yet."""

    def _metric_faults(self) -> list[UserError]:
        from sft.config.checks.suggest import nearest

        where = "judge.metrics"
        if not self.metrics:
            return [UserError("there is nothing to judge", where=where, remedy=f"there are: {', '.join(METRICS)}")]
        unknown = [str(name) for name in self.metrics if name not in METRICS]
        near = {name: nearest(name, list(METRICS)) for name in unknown}
        return [
            UserError(
                f"there is no metric {name!r}",
                where=where,
                remedy=(f"did you mean {near[name]}? " if near[name] else "") + f"There are: {', '.join(METRICS)}",
            )
            for name in unknown
        ]
