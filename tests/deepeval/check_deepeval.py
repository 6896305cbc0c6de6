"""DeepEval's own metrics through sft's judges, on loopback; run by `make test-deepeval`, which installs DeepEval."""

from __future__ import annotations

import json
import os
import socket

import pytest

from sft.evaluation.judges import Case, GeminiJudge, open_judging

CASE = Case(
    [{"role": "user", "content": "What is the capital of Australia?"}],
    "Canberra, which has 3 moons.",
    "Canberra.",
    ["Canberra is the capital of Australia."],
)


def says(prompt: str) -> str:
    """What a judge would say to each kind of question that DeepEval asks."""
    if '"truths"' in prompt:
        return json.dumps({"truths": ["Canberra is the capital of Australia."]})
    if '"claims"' in prompt:
        return json.dumps({"claims": ["Canberra is the capital.", "Canberra has 3 moons."]})
    if '"statements"' in prompt:
        return json.dumps({"statements": ["It is Canberra.", "It has 3 moons."]})
    if '"verdicts"' in prompt:
        return json.dumps({"verdicts": [{"verdict": "yes", "reason": "r"}, {"verdict": "no", "reason": "r"}]})
    if '"score"' in prompt:
        return json.dumps({"reason": "it is there", "score": 7})
    return json.dumps({"reason": "because"})


@pytest.fixture
def only_loopback(monkeypatch, tmp_path):
    """An empty working directory and home, and an error for every connection that leaves this machine."""
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GEMINI_API_KEY", "a-key-of-no-known-form")
    connect, tried = socket.socket.connect, []

    def checked(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            tried.append(address)
            raise OSError("no network in this test")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked)
    yield tmp_path
    assert tried == []
    assert os.listdir(tmp_path / "work") == [] and os.listdir(tmp_path / "home") == []


def test_deepevals_metrics_ask_through_the_judge_and_leave_nothing(service, only_loopback):
    service.say = says
    spec = GeminiJudge(base_url=service.url, cache=str(only_loopback / "cache"), scorer="deepeval", retries=0)
    judging = open_judging(spec)
    judging.check()
    (found,) = judging.judge([CASE])
    assert {name: verdict.score for name, verdict in found.items()} == {
        "correctness": 0.7,
        "coherence": 0.7,
        "relevancy": 0.5,
        "context_consistency": 0.5,
        "hallucination": 0.5,
    }
    calls = len(service.calls)
    assert calls == len(set(service.calls)) and "3 moons" in service.calls[0]
    again = open_judging(spec)
    assert again.judge([CASE]) == [found] and len(service.calls) == calls


def test_what_deepeval_cannot_use_is_told(service, only_loopback):
    service.say = lambda prompt: '{"verdicts": 3}'
    spec = GeminiJudge(
        base_url=service.url, cache=str(only_loopback / "cache"), scorer="deepeval", retries=1, backoff=0,
        metrics=["correctness", "relevancy"],
    )  # fmt: skip
    (found,) = open_judging(spec).judge([CASE])
    assert [verdict.score for verdict in found.values()] == [None, None]
    assert all("does not have the requested form" in verdict.reason for verdict in found.values())
    assert len(service.calls) == 4
