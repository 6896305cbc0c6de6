"""One question to a judge: answered from the cache, or by a call with retries, waits and rate limits."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from sft.evaluation.judges.base import CallFailed, Judge
from sft.evaluation.judges.cache import ReplyCache
from sft.evaluation.judges.verdict import InvalidVerdict

log = logging.getLogger(__name__)

T = TypeVar("T")
LONGEST_WAIT = 60.0  # seconds; the limit of doubled waits
LONGEST_ASKED = 600.0  # seconds that a service may ask to wait; with a longer wait the call is given up
MAX_FAILURES_IN_A_ROW = 8  # questions in a row without an answer, after which the rest is not asked


class JudgingStopped(Exception):
    """No more questions are asked: a signal came, or no call can succeed any more."""


class JudgeClient:
    """Asks a judge, from any number of threads.

    Args:
        judge: the judge to ask.
        cache: its earlier replies, and where new ones are kept.
        retries: further attempts after the first.
        backoff: seconds before the first of them.
        requests_per_minute: calls started in a minute, None for no limit.

    Attributes:
        calls: calls made, further attempts included.
        cached: answers from the cache.
        fatal: the failure that ended all questions.
    """

    def __init__(
        self,
        judge: Judge,
        cache: ReplyCache,
        *,
        retries: int = 6,
        backoff: float = 1.0,
        requests_per_minute: float | None = None,
    ) -> None:
        self.judge, self.cache = judge, cache
        self.retries, self.backoff = retries, backoff
        self.calls = self.cached = self._failures_in_a_row = 0
        self.fatal: CallFailed | None = None
        self.stop = threading.Event()
        self._pace = RateLimiter(requests_per_minute, self.stop)
        self._lock = threading.Lock()
        self._asked: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._random = random.Random()  # its own generator: training's random numbers are not touched

    def ask(self, prompt: str, schema: Mapping[str, Any] | None, read: Callable[[str], T]) -> T:
        """The judge's answer to a prompt, parsed by `read`.

        Raises:
            CallFailed: there is no answer after all attempts.
            InvalidVerdict: the answer is not a verdict, after all attempts.
            JudgingStopped: no more questions are asked.
        """
        key = self.cache.key(prompt, schema)
        with self._once(key):
            said = self.cache.get(key)
            if said is not None:
                with contextlib.suppress(InvalidVerdict):
                    value = read(said)
                    self._count(cached=1)
                    return value
            return self._attempts(key, prompt, schema, read)

    def _attempts(self, key: str, prompt: str, schema: Mapping[str, Any] | None, read: Callable[[str], T]) -> T:
        for attempt in range(self.retries + 1):
            self._pace.wait()
            if self.stop.is_set():
                raise JudgingStopped(self._why())
            try:
                self._count(calls=1)
                text = self.judge.reply(prompt, schema)
                value = read(text)
            except (CallFailed, InvalidVerdict) as error:
                self._after_failure(error, attempt)
            else:
                self.cache.put(key, text)
                self._failures_in_a_row = 0
                return value
        raise AssertionError("unreachable")

    def _after_failure(self, error: CallFailed | InvalidVerdict, attempt: int) -> None:
        """Wait for the next attempt, or raise."""
        again, after = (error.again, error.after) if isinstance(error, CallFailed) else (True, None)
        if isinstance(error, CallFailed) and error.fatal:
            self.fatal = self.fatal or error
            self.stop.set()
            raise error
        if after is not None and after > LONGEST_ASKED:
            again, error = False, CallFailed(f"{error} (it asks to wait {after:.0f} s)", again=False)
        if not again or attempt == self.retries:
            self._give_up(error)
            raise error
        wait = self.wait_before(attempt, after)
        log.debug("judge: %s; again in %.1f s", error, wait)
        if after is not None:
            self._pace.pause(after)
        self.stop.wait(wait)

    def wait_before(self, attempt: int, after: float | None) -> float:
        """Seconds until the next attempt: doubled each time, half of it random, never less than the service asks
        for."""
        wait = min(self.backoff * 2**attempt, LONGEST_WAIT) * self._random.uniform(0.5, 1.0)
        return wait if after is None else after + self._random.uniform(0, min(self.backoff, 1.0))

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW and self.fatal is None:
                self.fatal = CallFailed(
                    f"not asked: {self._failures_in_a_row} questions in a row got no answer; the last: {error}",
                    again=True,
                )
                self.stop.set()

    def _why(self) -> str:
        return str(self.fatal) if self.fatal else "not asked: stopped"

    def _count(self, calls: int = 0, cached: int = 0) -> None:
        with self._lock:
            self.calls += calls
            self.cached += cached

    @contextlib.contextmanager
    def _once(self, key: str) -> Iterator[None]:
        """Of two threads with the same question the second waits and finds the answer in the cache."""
        with self._lock:
            lock = self._asked[key]
        with lock:
            yield


class RateLimiter:
    """Spaces the starts of calls evenly, and holds them all back while a service asks to wait.

    Args:
        per_minute: calls started in a minute, None for no limit.
        stop: ends every wait.
    """

    def __init__(self, per_minute: float | None, stop: threading.Event) -> None:
        self.apart = 60.0 / per_minute if per_minute else 0.0
        self.stop, self._lock, self._next = stop, threading.Lock(), 0.0

    def wait(self) -> None:
        """Wait for this call's turn."""
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self.apart
        self.stop.wait(max(0.0, turn - time.monotonic()))

    def pause(self, seconds: float) -> None:
        """Start no call for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)
