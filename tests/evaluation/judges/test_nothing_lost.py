"""After interrupting judging by signals and kills of real processes, no question is asked twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from sft.evaluation.judges import Case, OpenAIJudge, open_judging
from sft.evaluation.judges.cache import ReplyCache

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
from sft.config.errors import Interrupted
from sft.evaluation.judges import Case, OpenAIJudge, open_judging
url, cache, concurrency = sys.argv[1:]
spec = OpenAIJudge(base_url=url, cache=cache, concurrency=int(concurrency), metrics=["coherence"], backoff=0.01)
cases = [Case([{"role": "user", "content": f"q{i}"}], f"answer {i}.") for i in range(40)]
judging = open_judging(spec)
try:
    found = judging.judge(cases)
except Interrupted as stopped:
    print(stopped)
    sys.exit(stopped.code)
print(round(sum(v["coherence"].score for v in found), 6), judging.client.calls, judging.client.cached)
assert "torch" not in sys.modules
"""


def start(service, cache: Path, concurrency: int) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, service.url, str(cache), str(concurrency)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_after_two_kills_during_calls_no_answered_question_is_repeated(service, tmp_path):
    process: list[subprocess.Popen] = []

    def kill_at(number: int) -> bool:
        if number not in (13, 27):
            return True
        process[-1].kill()
        process[-1].wait()
        return False

    service.before_answer = kill_at
    outputs = []
    for expected in (-signal.SIGKILL, -signal.SIGKILL, 0):
        process.append(start(service, tmp_path, 1))
        out, error = process[-1].communicate(timeout=60)
        assert process[-1].returncode == expected, error
        outputs.append(out)
    assert len(service.answered) == len(set(service.answered)) == 40
    assert len(service.calls) == 42  # the two that the kills cut off had no answer
    assert outputs[-1].split() == ["32.0", "15", "25"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_after_two_signals_no_call_is_repeated(service, tmp_path, number, code):
    process: list[subprocess.Popen] = []
    lock = threading.Lock()

    def signal_at(call: int) -> bool:
        if call in (10, 25):
            with lock:
                process[-1].send_signal(number)
        time.sleep(0.05)
        return True

    service.before_answer = signal_at
    for expected in (code, code, 0):
        process.append(start(service, tmp_path, 4))
        _, error = process[-1].communicate(timeout=60)
        assert process[-1].returncode == expected, error
    assert set(Counter(service.calls).values()) == {1} and len(service.calls) == 40


def test_concurrent_identical_questions_are_asked_once(service, tmp_path):
    service.before_answer = lambda number: time.sleep(0.05) is None
    spec = OpenAIJudge(base_url=service.url, cache=str(tmp_path), concurrency=8, metrics=["coherence"])
    same = [Case([{"role": "user", "content": "q"}], "a")] * 16
    assert [v["coherence"].score for v in open_judging(spec).judge(same)] == [0.8] * 16
    assert len(service.calls) == 1


def test_a_different_judge_or_setting_is_asked_again(service, tmp_path):
    case = [Case([{"role": "user", "content": "q"}], "a")]

    def ask(**settings) -> int:
        spec = OpenAIJudge(base_url=service.url, cache=str(tmp_path), metrics=["coherence"], **settings)
        open_judging(spec).judge(case)
        return len(service.calls)

    assert [ask(), ask(), ask(retries=1), ask(model="b"), ask(temperature=0.5), ask()] == [1, 1, 1, 2, 3, 3]


def test_an_incomplete_line_is_skipped_and_the_next_is_intact(tmp_path):
    cache = ReplyCache("judge", {}, tmp_path)
    cache.put("a", "first\nwith a second line")
    with cache.path.open("ab") as file:
        file.write(b'{"key": "b", "te')
    again = ReplyCache("judge", {}, tmp_path)
    assert (again.get("a"), again.get("b")) == ("first\nwith a second line", None)
    again.put("c", "third")
    last = ReplyCache("judge", {}, tmp_path)
    assert (len(last), last.get("c")) == (2, "third")
    assert os.stat(last.path).st_mode & 0o077 == 0
