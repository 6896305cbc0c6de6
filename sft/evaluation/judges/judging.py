"""Many answers judged in many respects: side by side, nothing asked twice, and what could not be had is told."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from sft.config.errors import Interrupted, UserError
from sft.evaluation.judges.asking import Asking, Stopped
from sft.evaluation.judges.base import CallFailed, Judge, JudgeSpec
from sft.evaluation.judges.cases import Case
from sft.evaluation.judges.ledger import Ledger
from sft.evaluation.judges.rubrics import RUBRICS, question
from sft.evaluation.judges.verdict import SCHEMA, Nonsense, Verdict, read_verdict
from sft.system.signals import taken

Verdicts = dict[str, Verdict]


class Judging:
    """A judge with its metrics, its patience and its memory.

    Args:
        judge: whom to ask.
        spec: metrics, attempts, limits, cache.
    """

    def __init__(self, judge: Judge, spec: JudgeSpec) -> None:
        self.judge_model, self.spec = judge, spec
        self._signal: int | None = None

    @functools.cached_property
    def asking(self) -> Asking:
        """Asks the judge; counts the calls made and the answers remembered."""
        spec, judge = self.spec, self.judge_model
        return Asking(
            judge,
            Ledger(judge.name, judge.settings, spec.cache),
            retries=spec.retries,
            backoff=spec.backoff,
            requests_per_minute=spec.requests_per_minute,
        )

    @functools.cached_property
    def _measure(self) -> Callable[[str, Case], Verdict]:
        return _deepeval(self.asking) if self.spec.scorer == "deepeval" else self._own

    @property
    def metrics(self) -> list[str]:
        """What is judged."""
        return list(dict.fromkeys(self.spec.metrics))

    def check(self) -> None:
        """See `Judge.check`; also that DeepEval is there where it is asked for."""
        self.judge_model.check()
        if self.spec.scorer == "deepeval":
            from sft.evaluation.judges.with_deepeval import require_deepeval

            require_deepeval()

    def judge(self, cases: Sequence[Case], progress: Callable[[int, int], None] | None = None) -> list[Verdicts]:
        """Judge each case by each metric that applies to it (correctness needs a reference).

        Args:
            cases: answers.
            progress: called with verdicts there are and verdicts in all.

        Returns:
            For each case, in order, a verdict a metric; `score` is None where it could not be had.

        Raises:
            UserError: the service refuses every call (its key, its model).
            Interrupted: SIGINT or SIGTERM; calls under way are waited for, so that none has to be made again.
        """
        found: list[Verdicts] = [{} for _ in cases]
        wanted = [(i, name) for i, case in enumerate(cases) for name in self.metrics if RUBRICS[name].applies(case)]
        self._measure  # noqa: B018  (DeepEval is imported here, in the main thread)
        workers = self.spec.concurrency if self.judge_model.parallel else 1
        with (
            taken((signal.SIGINT, signal.SIGTERM), self._take),
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
                self.asking.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            self._interrupt()
        if self.asking.fatal is not None and self.asking.fatal.fatal:
            raise UserError(
                f"{self.judge_model.name} refuses every call: {self.asking.fatal}",
                where="judge",
                remedy="mend that and start the same command again: verdicts that were had are not asked for again",
            )
        return [{name: verdicts[name] for name in self.metrics if name in verdicts} for verdicts in found]

    def _verdict(self, name: str, case: Case) -> Verdict:
        try:
            return self._measure(name, case)
        except (CallFailed, Nonsense, Stopped) as error:
            return Verdict(None, str(error))

    def _own(self, name: str, case: Case) -> Verdict:
        return self.asking.ask(question(name, case), SCHEMA, read_verdict)

    def _take(self, number: int, frame: Any) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        self.asking.stop.set()
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: the judge's calls under way are waited for; again to stop at once\n".encode())

    def _interrupt(self) -> None:
        if self._signal is not None:
            raise Interrupted(
                f"stopped by {signal.Signals(self._signal).name} after {self.asking.calls} calls to the judge; "
                f"the same command asks for what is missing (kept in {self.asking.ledger.path})",
                128 + self._signal,
            )


def open_judging(spec: JudgeSpec, judge: Judge | None = None) -> Judging:
    """A judge ready to judge; nothing is called or loaded yet.

    Args:
        spec: the config node, or made in Python: `GeminiJudge(metrics=["correctness"])`.
        judge: another judge than the spec's own, anything with `name`, `settings`, `parallel`, `check` and `reply`.

    Raises:
        UserError: `scorer=deepeval` without DeepEval.
    """
    return Judging(judge or spec.open(), spec)


def _deepeval(asking: Asking) -> Callable[[str, Case], Verdict]:
    from sft.evaluation.judges.with_deepeval import DeepEvalScorer

    return DeepEvalScorer(asking)


def _completed(futures: dict[Future, Any], interrupt: Callable[[], None]) -> Iterator[Future]:
    """Futures as they are done; wakes often enough for Python to deliver signals, which do not end a wait."""
    left = set(futures)
    while left:
        done, left = wait(left, timeout=0.2, return_when=FIRST_COMPLETED)
        interrupt()
        yield from done
