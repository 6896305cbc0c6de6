"""Jobs that train together in one process: each a whole run in a thread of its own, of which one runs at a time.

A job has its turn until it asks for something that the others can have computed with it (`Place.ask`). When all
that train have asked, their requests are computed in as few passes as `max_tokens` allows, and each goes on with its
answer. Whatever is the process's own changes hands with the turn (`ProcessState`). A job that ends makes room for the
next one.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sft.training.fused.passes import Passes
from sft.training.fused.place import Request, current
from sft.training.fused.refusal import why_alone
from sft.training.fused.switch import ProcessState
from sft.training.fused.table import Table
from sft.training.memory import free_memory, is_out_of_memory

log = logging.getLogger(__name__)

# default jobs at a time: at most, and if their memory is unknown
MOST, UNKNOWN = 32, 4
MARGIN = 0.85  # fraction of the available memory


@dataclass(frozen=True)
class QueuedJob:
    """A waiting job.

    Attributes:
        number: of the job.
        run: runs it from start to end.
    """

    number: int
    run: Callable[[], Any]


class Member:
    """A started job, in its thread."""

    def __init__(self, group: Group, work: QueuedJob) -> None:
        self.group, self.number = group, work.number
        self.turn, self.done = threading.Semaphore(0), False
        self.state: ProcessState | None = None
        self.request: Request | None = None
        self.answer: Any = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.trainer: Any = None
        self.own: int | None = None
        self.take: Callable[[int, Any], None] | None = None
        context = contextvars.copy_context()
        self.thread = threading.Thread(
            target=lambda: context.run(self._main, work.run), name=f"job {work.number}", daemon=True
        )
        self.thread.start()

    def _main(self, run: Callable[[], Any]) -> None:
        self.turn.acquire()
        current.set(self)
        try:
            self.result = run()
        except BaseException as error:
            self.error = error
        finally:
            self.done = True
            self.leave()
            self.group.back.release()

    # -- what the job calls, in its own thread ---------------------------------------------------------------------------
    def takes(self, needs: int, own: int, free: int) -> None:
        """See `Place`."""
        self.own = own
        self.group.shared, self.group.free = needs - own, free

    def join(self, trainer: Any) -> str | None:
        """See `Place`."""
        reason = why_alone(trainer)
        if reason is None:
            self.trainer = trainer
            self.group.passes.join(self.number, trainer)
        return reason

    def leave(self) -> None:
        """See `Place`."""
        if self.trainer is not None:
            self.group.passes.leave(self.number)
            self.trainer = None

    def ask(self, request: Request) -> Any:
        """See `Place`."""
        self.request = request
        self.group.back.release()
        self.turn.acquire()
        answer, self.answer = self.answer, None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def wait(self, step: int) -> None:
        """See `Place`."""
        if self.trainer is not None:
            self.ask(Request("wait", step=step))

    def listen(self, take: Callable[[int, Any], None]) -> Callable[[], None]:
        """See `Place`."""
        self.take = take

        def end() -> None:
            self.take = None

        return end


class Group:
    """Runs jobs, some at a time; its methods are called in the main thread.

    Args:
        passes: computes requests.
        at_once: jobs at a time; None for as many as memory allows according to their estimates.
        table: displays them; None displays nothing.
    """

    def __init__(self, passes: Passes, at_once: int | None, table: Table | None = None) -> None:
        self.passes, self.at_once, self.table = passes, at_once, table
        self.back = threading.Semaphore(0)  # released by the job that yields its turn
        self.members: list[Member] = []
        self.stopping = False
        self.exhausted = False  # whether every job has begun
        self.shared, self.free = 0, 0  # bytes shared by all jobs, and available bytes

    def run(self, jobs: Iterable[QueuedJob], ended: Callable[[Member], None]) -> None:
        """Run all jobs to their end.

        Args:
            jobs: the next one is taken when there is room for it.
            ended: called with each job that has ended, in that order.
        """
        pending = iter(jobs)
        while self.members or not (self.exhausted or self.stopping):
            while not (self.exhausted or self.stopping) and self._has_room():
                job = next(pending, None)
                self.exhausted = job is None
                if job is not None:
                    self.members.append(Member(self, job))
                    self._give_turn(self.members[-1])
                    self._drop_ended(ended)
            for member in list(self.members):
                if member.request is None:
                    self._give_turn(member)
            self._drop_ended(ended)
            self._answer([member for member in self.members if member.request is not None])

    def signal(self, number: int, frame: Any) -> None:
        """Forward a signal to every running job; no other job starts."""
        self.stopping = True
        for member in self.members:
            if member.take is not None:
                member.take(number, frame)

    def _has_room(self) -> bool:
        """Whether another job may start."""
        if self.at_once is not None:
            return len(self.members) < self.at_once
        known = [member.own for member in self.members if member.own is not None]
        if len(known) < len(self.members):  # a job is still preparing its rows, or could not be estimated
            return len(self.members) < UNKNOWN and all(member.trainer is not None for member in self.members)
        wanted = self.shared + sum(known) + max(known, default=0)
        return len(self.members) < MOST and (not known or wanted <= MARGIN * self.free)

    def _drop_ended(self, ended: Callable[[Member], None]) -> None:
        for member in [member for member in self.members if member.done]:
            self.members.remove(member)
            member.thread.join()
            if self.table is not None:
                self.table.ended += 1
            ended(member)

    def _give_turn(self, member: Member) -> None:
        """Let a job run until it submits a request, or ends."""
        home = ProcessState()
        if member.state is not None:
            member.state.restore()
        member.turn.release()
        self.back.acquire()
        member.state = ProcessState()
        home.restore()

    def _answer(self, asking: Sequence[Member]) -> None:
        """Compute the jobs' requests, grouped by kind; waiting jobs continue when no other job is behind them."""
        waiting = [member for member in asking if member.request and member.request.kind == "wait"]
        asking = [member for member in asking if member not in waiting]
        for member in waiting:
            step = member.request.step if member.request else 0
            if not any(other.trainer is not None and other.trainer.state.global_step <= step for other in asking):
                member.request = None
        for kind in dict.fromkeys(member.request.kind for member in asking if member.request):
            self._compute([member for member in asking if member.request and member.request.kind == kind])

    def _compute(self, asking: Sequence[Member]) -> None:
        """Answer requests of one kind; if that fails for several, each half separately, so that an error reaches its
        own job."""
        for some in self.passes.within_bounds([(member.number, member.request) for member in asking]):
            members = [member for member in asking if member.number in some]
            before = [member.state.draws for member in members if member.state]
            try:
                asked = [(member.number, member.request, member.state) for member in members if member.request]
                answers: Sequence[Any] = self.passes.compute(asked)
            except Exception as error:
                for member, draws in zip(members, before, strict=True):
                    assert member.state is not None
                    member.state.draws = draws
                if is_out_of_memory(error):
                    free_memory()
                if len(members) > 1:
                    if is_out_of_memory(error):
                        self.passes.shrink([member.request for member in members if member.request])
                    self._compute(members[: len(members) // 2])
                    self._compute(members[len(members) // 2 :])
                    continue
                answers = [error]
            if self.table is not None and members[0].request and members[0].request.kind == "train":
                self.table.computed(sum(member.request.tokens for member in members if member.request), self.members)
            for member, answer in zip(members, answers, strict=True):
                member.request, member.answer = None, answer
