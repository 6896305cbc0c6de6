"""The conversation of a browser tab, and its answers, which are streamed from a thread."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sft.config.errors import UserError
from sft.evaluation.sampling import Sampling
from sft.inference.chat_session import ChatSession, Message
from sft.inference.web.model_pool import ModelPool

log = logging.getLogger(__name__)

TUNED, BASE = 0, 1  # the two sides
PAUSE = 0.05  # seconds between two updates of the page: more often would only cost time


@dataclass(frozen=True)
class ChatOptions:
    """The options on the page when an answer is requested.

    Attributes:
        model: a name from the model pool.
        system: the system prompt, "" for none.
        compare: whether the base answers too.
        sampling: how tokens are sampled.
    """

    model: str
    system: str
    compare: bool
    sampling: Sampling


@dataclass
class TabSession:
    """The conversation of one tab, with the model and with its base.

    Attributes:
        sides: the turns so far of both, without system prompt.
        answered: answers generated so far; each is sampled with its own seed, the same for both sides.
        options: the options of the last answer.
        file: where the conversation was saved, None where it was not.
        stop: stops the answer that is being generated.
    """

    sides: tuple[list[Message], list[Message]] = field(default_factory=lambda: ([], []))
    answered: int = 0
    options: ChatOptions | None = None
    file: Path | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def reset(self, messages: list[Message] | None = None) -> None:
        """Start an empty conversation, or continue another one; a running answer is stopped."""
        self.stop.set()
        self.sides, self.answered, self.file = (list(messages or []), []), 0, None

    @property
    def compared(self) -> bool:
        """Whether the base has answered the last message too."""
        tuned, base = self.sides
        return bool(base) and len(base) == len(tuned)


@dataclass
class PageState:
    """The state of the page while an answer is generated.

    Attributes:
        sides: the turns of both, with the answers so far.
        note: a status line, "" for none.
        failed: whether generating the answer has failed.
    """

    sides: tuple[list[Message], list[Message]]
    note: str = ""
    failed: bool = False


def stream_answers(pool: ModelPool, session: TabSession, options: ChatOptions, text: str | None) -> Iterator[PageState]:
    """Answer a message, or with None the last one again; yields the page's state whenever there is more text.

    Only one answer is generated at a time, over all tabs; closing the iterator stops this one.
    """
    session.stop = stop = threading.Event()
    session.options, sides = options, session.sides
    if options.compare and len(sides[BASE]) != len(sides[TUNED]):
        sides[BASE][:] = sides[TUNED]  # the base continues the current conversation
    before = [_asked(side, text) if side is sides[TUNED] or options.compare else list(side) for side in sides]
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    worker = threading.Thread(target=_generate, args=(pool, session, options, text, stop, events.put), daemon=True)
    worker.start()
    try:
        made, note = ["", ""], ""
        yield PageState(_with(before, made))
        while True:
            news = [_next(events, pool.closed)]
            while not events.empty():
                news.append(events.get())
            for each in news:
                if isinstance(each, str):
                    note = each
                elif isinstance(each, tuple):
                    made[each[0]] += each[1]
                    note = ""
                else:
                    error = each if isinstance(each, UserError) else None
                    yield PageState(session.sides, str(error) if error else "", failed=error is not None)
                    return
            if session.sides is sides:  # otherwise it was cleared meanwhile
                yield PageState(_with(before, made), note)
                time.sleep(PAUSE)
    finally:
        stop.set()


def _next(events: queue.SimpleQueue[Any], closed: threading.Event) -> Any:
    """The worker's next event, or an error when the page is closed, which does not wait for a worker in a long
    prompt."""
    while not closed.is_set():
        with contextlib.suppress(queue.Empty):
            return events.get(timeout=0.2)
    return UserError("the page is closed")


def _generate(
    pool: ModelPool,
    session: TabSession,
    options: ChatOptions,
    text: str | None,
    stop: threading.Event,
    report: Callable[[Any], None],
) -> None:
    """Generate the answers; report notes (text), pieces ((side, text)), and finally the end (None or an error)."""
    sides = session.sides
    try:
        with pool.lock:
            if not stop.is_set() and not pool.is_open(options.model):
                report(f"loading {options.model} …")
            loaded = pool.open(options.model)
            settings: dict[str, Any] = {
                "system": options.system or None,
                "sampling": options.sampling,
                "answered": session.answered,
            }
            chat_session = replace(loaded.chat_session, messages=sides[TUNED], **settings)
            _answer_turn(chat_session, text, stop, lambda p: report((TUNED, p)))
            session.answered = chat_session.answered
            if options.compare and not stop.is_set():
                with loaded.as_base() as base:
                    _answer_turn(
                        replace(base, messages=sides[BASE], **settings), text, stop, lambda p: report((BASE, p))
                    )
        report(None)
    except UserError as error:
        report(error)
    except Exception as error:  # out of memory, a broken file: the page keeps running, the log has the traceback
        log.exception("generating an answer failed")
        report(UserError(f"generating an answer failed: {type(error).__name__}: {error}"))


def _answer_turn(
    chat_session: ChatSession, text: str | None, stop: threading.Event, show: Callable[[str], None]
) -> None:
    if text is None:
        chat_session.again(show, stop.is_set)
    else:
        chat_session.ask(text, show, stop.is_set)


def _asked(messages: list[Message], text: str | None) -> list[Message]:
    """The turns before the new answer."""
    return [*messages, {"role": "user", "content": text}] if text is not None else messages[:-1]


def _with(before: list[list[Message]], made: list[str]) -> tuple[list[Message], list[Message]]:
    tuned, base = (
        [*turns, {"role": "assistant", "content": text}] if text else list(turns)
        for turns, text in zip(before, made, strict=True)
    )
    return tuned, base
