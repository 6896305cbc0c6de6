"""Judges that query a service on loopback, with their cache in the test's own directory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sft.evaluation.judges import Case, GeminiJudge, Judging, OpenAIJudge, open_judging

KEY = "a-key-of-no-known-form"


@pytest.fixture
def key(monkeypatch) -> str:
    for name in ("GOOGLE_API_KEY",):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY


@pytest.fixture(params=[GeminiJudge, OpenAIJudge], ids=["gemini", "openai"])
def kind(request) -> type:
    return request.param


@pytest.fixture
def judging(service, tmp_path, key, kind) -> Callable[..., Judging]:
    """Settings -> a judge of either protocol that asks the service."""

    def make(**settings: Any) -> Judging:
        given = {"metrics": ["coherence"], "backoff": 0.01, "timeout": 5, "cache": str(tmp_path / "cache"), **settings}
        return open_judging(
            kind(base_url=settings.pop("base_url", service.url), **{k: v for k, v in given.items() if k != "base_url"})
        )

    return make


@pytest.fixture
def cases() -> Callable[[int], list[Case]]:
    """So many different answers."""
    return lambda count: [
        Case([{"role": "user", "content": f"question {i}"}], f"answer {i}", f"reference {i}") for i in range(count)
    ]
