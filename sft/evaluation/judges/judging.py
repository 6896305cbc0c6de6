"""Judging many answers by several metrics: concurrently, no question twice, and missing verdicts are reported."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from sft.config.errors import Interrupted, UserError
from sft.evaluation.judges.base import CallFailed, Judge, JudgeSpec
from sft.evaluation.judges.cache import ReplyCache
from sft.evaluation.judges.cases import Case
from sft.evaluation.judges.client import JudgeClient, JudgingStopped
from sft.evaluation.judges.rubrics import RUBRICS, question
from sft.evaluation.judges.verdict import SCHEMA, InvalidVerdict, Verdict, read_verdict
from sft.system.signals import taken

Verdicts = dict[str, Verdict]


class Judging:
    """A judge with its metrics, retries and cache.

    Args:
        judge: the judge to ask.
        spec: metrics, retries, limits, cache.
    """

    def __init__(self, judge: Judge, spec: JudgeSpec) -> None:
        self.judge_model, self.spec = judge, spec
        self._signal: int | None = None

    @functools.cached_property
    def client(self) -> JudgeClient:
        """The client of the judge; counts its calls and cached answers."""
        spec, judge = self.spec, self.judge_model
        return JudgeClient(
            judge,
            ReplyCache(judge.name, judge.settings, spec.cache),
            retries=spec.retries,
            backoff=spec.backoff,
            requests_per_minute=spec.requests_per_minute,
        )

    @functools.cached_property
    def _judge_case(self) -> Callable[[str, Case], Verdict]:
        return _deepeval(self.client) if self.spec.scorer == "deepeval" else self._own

    @property
    def metrics(self) -> list[str]:
        """The metrics that are judged."""
        return list(dict.fromkeys(self.spec.metrics))

    def check(self) -> None:
        """See `Judge.check`; also checks that DeepEval is installed where it is used."""
        self.judge_model.check()
        if self.spec.scorer == "deepeval":
            from sft.evaluation.judges.with_deepeval import require_deepeval

            require_deepeval()

    def judge(self, cases: Sequence[Case], progress: Callable[[int, int], None] | None = None) -> list[Verdicts]:
        """Judge each case by each metric that applies to it (correctness needs a reference).

        Args:
            cases: answers.
            progress: called with the verdicts so far and the number of all.

        Returns:
            For each case, in order, one verdict per metric; `score` is None where it is missing.

        Raises:
            UserError: the service refuses every call (the key or the model).
            Interrupted: SIGINT or SIGTERM; running calls are awaited, so that none has to be repeated.
        """
        found: list[Verdicts] = [{} for _ in cases]
        wanted = [(i, name) for i, case in enumerate(cases) for name in self.metrics if RUBRICS[name].applies(case)]
        self._judge_case  # noqa: B018  (DeepEval is imported here, in the main thread)
        workers = self.spec.concurrency if self.judge_model.parallel else 1
        with (
            taken((signal.SIGINT, signal.SIGTERM), self._on_signal),
            ThreadPoolExecutor(workers, thread_name_prefix="judge") as pool,
        ):
            waiting = {pool.submit(self._verdict, name, cases[i]): (i, name) for i, name in wanted}
            try:
                for done, future in enumerate(_completed(waiting, self._interrupt), 1):
                    i, name = waiting[future]
                    found[i][name] = future.result()
                    if progress:
                        progress(done, len(wanted))
            except BaseException:
                self.client.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            self._interrupt()
        if self.client.fatal is not None and self.client.fatal.fatal:
            raise UserError(
                f"{self.judge_model.name} refuses every call: {self.client.fatal}",
                where="judge",
                remedy="fix that and start the same command again: existing verdicts are not asked for again",
            )
        return [{name: verdicts[name] for name in self.metrics if name in verdicts} for verdicts in found]

    def _verdict(self, name: str, case: Case) -> Verdict:
        try:
            return self._judge_case(name, case)
        except (CallFailed, InvalidVerdict, JudgingStopped) as error:
            return Verdict(None, str(error))

    def _own(self, name: str, case: Case) -> Verdict:
        return self.client.ask(question(name, case), SCHEMA, read_verdict)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        self.client.stop.set()
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: waiting for the judge's running calls; again to stop at once\n".encode())

    def _interrupt(self) -> None:
        if self._signal is not None:
            raise Interrupted(
                f"stopped by {signal.Signals(self._signal).name} after {self.client.calls} calls to the judge; "
                f"the same command asks for the missing verdicts (kept in {self.client.cache.path})",
                128 + self._signal,
            )


def open_judging(spec: JudgeSpec, judge: Judge | None = None) -> Judging:
    """A judge that is ready to use; nothing is called or loaded yet.

    Args:
        spec: the config node, or made in Python: `GeminiJudge(metrics=["correctness"])`.
        judge: a judge in place of the spec's own, any object with `name`, `settings`, `parallel`, `check` and `reply`.

    Raises:
        UserError: `scorer=deepeval` without DeepEval.
    """
    return Judging(judge or spec.open(), spec)


def _deepeval(client: JudgeClient) -> Callable[[str, Case], Verdict]:
    from sft.evaluation.judges.with_deepeval import DeepEvalScorer

    return DeepEvalScorer(client)


def _completed(futures: dict[Future, Any], interrupt: Callable[[], None]) -> Iterator[Future]:
    """Futures as they complete; polls, so that Python can deliver signals, which do not interrupt a wait."""
    left = set(futures)
    while left:
        done, left = wait(left, timeout=0.2, return_when=FIRST_COMPLETED)
        interrupt()
        yield from done
