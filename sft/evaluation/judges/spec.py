"""The config node `judge`: which model judges answers, on what, and how patiently. Imports nothing heavy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sft.config.errors import UserError, raise_all

if TYPE_CHECKING:
    from sft.evaluation.judges.base import Judge

OTHERS_KEYS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "GEMINI_API_KEY",
    "GOOGLE_API_KEY",
    "GITHUB_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
)
METRICS = ("correctness", "coherence", "relevancy", "context_consistency", "hallucination")


@dataclass
class JudgeSpec(ABC):
    """What all judges have in common.

    Args:
        model: the judge's model.
        metrics: what is judged: correctness, coherence, relevancy, context_consistency, hallucination.
        scorer: `sft` asks one question a metric and row; `deepeval` has DeepEval's metrics ask, through this judge.
        temperature: of the judge's answers; null leaves it to the service.
        max_tokens: longest answer of the judge, its thinking included.
        timeout: seconds without a byte after which a call counts as broken.
        retries: further attempts after a call that broke, was refused for the moment, or gave nonsense.
        backoff: seconds before the first further attempt; doubled each time, at most a minute, less a random part.
        requests_per_minute: calls that are started in a minute, null for no limit.
        concurrency: calls under way at a time.
        cache: a directory for the answers of the judge; null for the user's cache. The same question is asked once.
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
        raise_all(
            [
                UserError(f"{getattr(self, key)!r} is out of range", where=f"judge.{key}", remedy=f"give {range_}")
                for key, (holds, range_) in rules.items()
                if not holds
            ]
            + self._metric_faults()
        )

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


@dataclass
class GeminiJudge(JudgeSpec):
    """Gemini; the key is the environment variable GEMINI_API_KEY, or GOOGLE_API_KEY.

    Args:
        base_url: the service's address.
    """

    model: str | None = "gemini-2.5-flash"
    base_url: str = "https://generativelanguage.googleapis.com/v1beta"

    def open(self) -> Judge:
        """The judge."""
        from sft.evaluation.judges.gemini import Gemini

        return Gemini(self)


@dataclass
class OpenAIJudge(JudgeSpec):
    """Any endpoint that speaks OpenAI's chat completions: OpenAI, vLLM, llama.cpp, Ollama, ...

    Args:
        base_url: the address up to /v1.
        api_key_env: the environment variable that has the key; null for a service that wants none. A server on this
            machine may go without.
        response_format: how the answer's form is asked for; older servers know json_object or text alone.
    """

    model: str | None = "gpt-4.1-mini"
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str | None = "OPENAI_API_KEY"
    response_format: Literal["json_schema", "json_object", "text"] = "json_schema"

    def __post_init__(self) -> None:
        """As of all; the key is not one of another service's.

        Raises:
            UserError: all faults at once.
        """
        super().__post_init__()
        if self.api_key_env in OTHERS_KEYS:
            raise UserError(
                f"{self.api_key_env} is another service's, which this one is not to see",
                where="judge.api_key_env",
                remedy="OPENAI_API_KEY, or a variable of its own",
            )

    def open(self) -> Judge:
        """The judge."""
        from sft.evaluation.judges.openai import OpenAI

        return OpenAI(self)


@dataclass
class LocalJudge(JudgeSpec):
    """A model on this machine, loaded after the judged one was let go of; no network, no key.

    Args:
        model: hub id or directory; null for the embedded SmolLM2 135M, which is too small to judge well.
        dtype: precision of its weights.
        load_in_4bit: quantize it to nf4.
    """

    max_tokens: int = 256
    dtype: Literal["auto", "bfloat16", "bf16", "float16", "fp16", "float32", "fp32"] = "auto"
    load_in_4bit: bool = False

    def open(self) -> Judge:
        """The judge."""
        from sft.evaluation.judges.local import Local

        return Local(self)
