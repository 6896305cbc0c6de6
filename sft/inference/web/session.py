"""What one browser tab has said, and how its answers are made: in a thread, piece by piece."""

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
from sft.inference.talk import Message, Talk
from sft.inference.web.shelf import Shelf

log = logging.getLogger(__name__)

TUNED, BASE = 0, 1  # the two sides
PAUSE = 0.05  # seconds between two states of the page: more would cost browser and server time, and nobody sees it


@dataclass(frozen=True)
class Wish:
    """What is set on the page when an answer is asked for.

    Attributes:
        model: a name of the shelf's.
        system: the system prompt, "" for none.
        compare: whether the base answers too.
        sampling: how tokens are drawn.
    """

    model: str
    system: str
    compare: bool
    sampling: Sampling


@dataclass
class Session:
    """The conversation of one tab, with the model and with its base.

    Attributes:
        sides: the turns so far of both, system prompt apart.
        answered: answers made so far; each is drawn with a seed of its own, the same for both sides.
        wish: how the last answer was asked for.
        file: where the conversation was saved, None where it was not.
        stop: ends the answer that is being made.
    """

    sides: tuple[list[Message], list[Message]] = field(default_factory=lambda: ([], []))
    answered: int = 0
    wish: Wish | None = None
    file: Path | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def reset(self, messages: list[Message] | None = None) -> None:
        """Forget what was said, or go on with another conversation; an answer in the making ends."""
        self.stop.set()
        self.sides, self.answered, self.file = (list(messages or []), []), 0, None

    @property
    def compared(self) -> bool:
        """Whether the base has answered the last message too."""
        tuned, base = self.sides
        return bool(base) and len(base) == len(tuned)


@dataclass
class Shown:
    """What the page shows while an answer is made.

    Attributes:
        sides: the turns of both, with as much of the answers as there is.
        note: a line on what is going on, "" for nothing.
        failed: whether there will be no answer.
    """

    sides: tuple[list[Message], list[Message]]
    note: str = ""
    failed: bool = False


def answers(shelf: Shelf, session: Session, wish: Wish, text: str | None) -> Iterator[Shown]:
    """Answer a message, or with None the last one again; the page's next state, each time there is more of it.

    Answers are made one at a time, whoever asks; leaving the iterator early stops this one.
    """
    session.stop = stop = threading.Event()
    session.wish, sides = wish, session.sides
    if wish.compare and len(sides[BASE]) != len(sides[TUNED]):
        sides[BASE][:] = sides[TUNED]  # the base takes the conversation over as it stands
    before = [_asked(side, text) if side is sides[TUNED] or wish.compare else list(side) for side in sides]
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    worker = threading.Thread(target=_work, args=(shelf, session, wish, text, stop, events.put), daemon=True)
    worker.start()
    try:
        made, note = ["", ""], ""
        yield Shown(_with(before, made))
        while True:
            news = [_next(events, shelf.closed)]
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
                    yield Shown(session.sides, str(error) if error else "", failed=error is not None)
                    return
            if session.sides is sides:  # else it was cleared meanwhile
                yield Shown(_with(before, made), note)
                time.sleep(PAUSE)
    finally:
        stop.set()


def _next(events: queue.SimpleQueue[Any], closed: threading.Event) -> Any:
    """What the worker tells next. It may be in the middle of a long prompt, which the end of the page does not wait for."""
    while not closed.is_set():
        with contextlib.suppress(queue.Empty):
            return events.get(timeout=0.2)
    return UserError("the page is closed")


def _work(
    shelf: Shelf,
    session: Session,
    wish: Wish,
    text: str | None,
    stop: threading.Event,
    tell: Callable[[Any], None],
) -> None:
    """Make the answers and tell of a note (text), a piece ((side, text)), and at last of the end (None or an error)."""
    sides = session.sides
    try:
        with shelf.lock:
            if not stop.is_set() and not shelf.is_open(wish.model):
                tell(f"loading {wish.model} …")
            opened = shelf.open(wish.model)
            said: dict[str, Any] = {
                "system": wish.system or None,
                "sampling": wish.sampling,
                "answered": session.answered,
            }
            talk = replace(opened.talk, messages=sides[TUNED], **said)
            _say(talk, text, stop, lambda p: tell((TUNED, p)))
            session.answered = talk.answered
            if wish.compare and not stop.is_set():
                with opened.as_base() as base:
                    _say(replace(base, messages=sides[BASE], **said), text, stop, lambda p: tell((BASE, p)))
        tell(None)
    except UserError as error:
        tell(error)
    except Exception as error:  # out of memory, a broken file: the page goes on, the log has the traceback
        log.exception("no answer could be made")
        tell(UserError(f"no answer could be made: {type(error).__name__}: {error}"))


def _say(talk: Talk, text: str | None, stop: threading.Event, show: Callable[[str], None]) -> None:
    if text is None:
        talk.again(show, stop.is_set)
    else:
        talk.ask(text, show, stop.is_set)


def _asked(messages: list[Message], text: str | None) -> list[Message]:
    """The turns up to the answer that is to come."""
    return [*messages, {"role": "user", "content": text}] if text is not None else messages[:-1]


def _with(before: list[list[Message]], made: list[str]) -> tuple[list[Message], list[Message]]:
    tuned, base = (
        [*turns, {"role": "assistant", "content": text}] if text else list(turns)
        for turns, text in zip(before, made, strict=True)
    )
    return tuned, base
