"""Requests to services, key checks and failed calls, with a real server on loopback."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from sft.config.errors import UserError
from sft.evaluation.judges import Verdict, open_judging
from sft.evaluation.judges.client import JudgeClient
from sft.evaluation.judges.http import _retry_after
from sft.evaluation.judges.verdict import SCHEMA, InvalidVerdict, read_verdict

GOOD = Verdict(0.8, "it says so")


def test_a_verdict_is_requested_in_the_services_own_format(service, judging, cases, key, kind):
    made = judging(metrics=["correctness"], temperature=0.3, max_tokens=77)
    made.check()
    assert made.judge(cases(1)) == [{"correctness": GOOD}]
    (body,) = service.bodies
    prompt = service.calls[0]
    assert "question 0" in prompt and "answer 0" in prompt and "reference 0" in prompt
    assert key not in body["path"] and key not in prompt
    if kind.__name__ == "GeminiJudge":
        assert body["path"] == "/v1/models/gemini-2.5-flash:generateContent"
        assert body["headers"]["x-goog-api-key"] == key
        config = {"maxOutputTokens": 77, "temperature": 0.3, "responseMimeType": "application/json"}
        assert body["generationConfig"] == {**config, "responseJsonSchema": SCHEMA}
    else:
        assert body["path"] == "/v1/chat/completions" and body["headers"]["Authorization"] == f"Bearer {key}"
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("gpt-4.1-mini", 77, 0.3)
        assert body["response_format"]["json_schema"]["schema"] == SCHEMA


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no JSON at all", "not a JSON object"),
        ('{"reason": "cut off', "not a JSON object"),
        ('["reason", 3]', "not a JSON object"),
        ('{"reason": "no score"}', "has no score"),
        ('{"reason": "r", "score": "high"}', "has no score"),
        ('{"reason": "r", "score": true}', "has no score"),
        ('{"reason": "r", "score": 11}', "not between 0 and 10"),
        ('{"reason": "r", "score": -1}', "not between 0 and 10"),
        ('{"reason": "r", "score": NaN}', "not between 0 and 10"),
        ('{"reason": null, "score": 3}', "has no reason"),
    ],
)
def test_an_invalid_reply_is_not_a_verdict(service, judging, cases, text, says):
    with pytest.raises(InvalidVerdict, match=says):
        read_verdict(text)
    service.faults = [{"text": text}]
    assert judging().judge(cases(1)) == [{"coherence": GOOD}]
    assert len(service.calls) == 2


def test_a_verdict_in_a_code_fence_is_accepted():
    assert read_verdict('Here:\n```json\n{"score": 0, "reason": " r "}\n```') == Verdict(0.0, "r")


@pytest.mark.parametrize("fault", [(429, {}), (500, {}), (503, {}), "cut", "half", "page", "empty"], ids=str)
def test_a_failed_call_is_retried(service, judging, cases, fault):
    service.faults = [fault]
    made = judging()
    assert made.judge(cases(1)) == [{"coherence": GOOD}]
    assert (len(service.calls), made.client.calls) == (2, 2)


def test_retry_after_is_honoured(service, judging, cases):
    service.faults = [(429, {"Retry-After": "1"})]
    started = time.monotonic()
    assert judging(backoff=0).judge(cases(1)) == [{"coherence": GOOD}]
    assert time.monotonic() - started >= 1.0


def test_retry_after_is_parsed():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert _retry_after("7", None) == 7.0
    assert 27 < (_retry_after(soon, None) or 0) <= 30
    assert _retry_after("soon", None) is None
    assert _retry_after(None, {"error": {"details": [{"@type": "RetryInfo", "retryDelay": "34.5s"}]}}) == 34.5


def test_waits_double_with_jitter_up_to_a_minute(judging):
    client: JudgeClient = judging(backoff=2.0).client
    for attempt, most in [(0, 2), (1, 4), (3, 16), (9, 60)]:
        waits = [client.wait_before(attempt, None) for _ in range(50)]
        assert most / 2 <= min(waits) < max(waits) <= most
    assert all(5 <= client.wait_before(0, 5.0) <= 6 for _ in range(50))


def test_missing_verdicts_are_reported_and_the_rest_is_scored(service, judging, cases):
    service.say = lambda prompt: "nonsense" if "answer 1" in prompt else '{"reason": "it says so", "score": 8}'
    made = judging(retries=2)
    found = made.judge(cases(3))
    assert [verdicts["coherence"].score for verdicts in found] == [0.8, None, 0.8]
    assert found[1]["coherence"].reason == "the judge's answer is not a JSON object: 'nonsense'"
    assert len(service.calls) == 5


def test_a_bad_request_is_not_retried(service, judging, cases):
    service.faults = [(400, {})]
    found = judging().judge(cases(1))
    assert found == [{"coherence": Verdict(None, "HTTP 400: not now")}] and len(service.calls) == 1


def test_an_unavailable_service_is_not_asked_for_every_row(service, judging, cases):
    made = judging(retries=0, concurrency=1)
    service.close()
    found = made.judge(cases(30))
    assert made.client.calls == 8
    assert "not asked: 8 questions in a row got no answer" in found[-1]["coherence"].reason


def test_a_key_revoked_midway_stops_judging_and_keeps_the_verdicts(service, judging, cases, key):
    made = judging(concurrency=1)
    service.before_answer = lambda number: number < 3 or not service.keys.add("another")
    with pytest.raises(UserError, match="refuses every call: HTTP 40") as error:
        made.judge(cases(10))
    assert key not in str(error.value) and len(service.calls) == 4
    service.keys.clear()
    service.before_answer = lambda number: True
    again = judging(concurrency=1)
    again.judge(cases(10))
    assert len(again.client.cache) == 10 and again.client.cached == 3


def test_the_rate_limit_is_respected(service, judging, cases):
    started = time.monotonic()
    judging(requests_per_minute=600).judge(cases(6))
    assert time.monotonic() - started >= 0.5  # five spaces of a tenth of a second


def test_a_missing_key_is_reported_first(monkeypatch, kind, service):
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "")
    with pytest.raises(
        UserError, match=r"there is no key: (GEMINI_API_KEY or GOOGLE_API_KEY|OPENAI_API_KEY) is not set"
    ):
        open_judging(kind()).check()
    assert service.calls == []


def test_geminis_second_key_variable_is_accepted(monkeypatch, service, tmp_path):
    from sft.evaluation.judges import GeminiJudge

    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    monkeypatch.setenv("GOOGLE_API_KEY", "the-other-name")
    service.keys = {"the-other-name"}
    open_judging(GeminiJudge(base_url=service.url)).check()
    service.keys = {"a third"}
    with pytest.raises(UserError, match="refused the key"):
        open_judging(GeminiJudge(base_url=service.url)).check()
    assert service.calls == []  # a check asks no question


def test_a_local_server_needs_no_key(monkeypatch, service):
    from sft.evaluation.judges import OpenAIJudge

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    open_judging(OpenAIJudge(base_url=service.url)).check()
    service.keys = {"one"}
    with pytest.raises(UserError, match="key"):
        open_judging(OpenAIJudge(base_url=service.url)).check()
    assert service.calls == []


def test_a_refused_key_is_named_and_not_shown(service, judging, key):
    service.keys = {"another"}
    with pytest.raises(UserError, match=r"refused the key in (GEMINI|OPENAI)_API_KEY") as error:
        judging().check()
    assert key not in str(error.value) and "***" in str(error.value)


def test_an_unreachable_service_is_reported(judging):
    with pytest.raises(UserError, match=r"judge\.base_url: cannot be reached: the connection to 127\.0\.0\.1:9 failed"):
        judging(base_url="http://127.0.0.1:9/v1").check()


def test_a_missing_model_is_reported(service, judging, kind, caplog):
    service.models = {"another"}
    if kind.__name__ == "GeminiJudge":
        with pytest.raises(UserError, match="has no such model or path"):
            judging().check()
    else:  # servers list their models by other names than they answer to
        judging().check()
        assert "gpt-4.1-mini is not among the models" in caplog.text


def test_a_key_is_not_sent_to_a_redirect_target(service, judging, cases, key):
    service.faults = [(302, {"Location": "http://localhost:1/elsewhere"})]
    with pytest.raises(UserError, match="HTTP 302"):
        judging().judge(cases(1))


def test_a_key_repeated_by_the_judge_is_redacted(service, judging, cases, key, tmp_path):
    service.say = lambda prompt: json.dumps({"reason": f"your key is {key}", "score": 1})
    judging().judge(cases(1))
    kept = "".join(path.read_text() for path in (tmp_path / "cache").iterdir())
    assert key not in kept and "***" in kept
