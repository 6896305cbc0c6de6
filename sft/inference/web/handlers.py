"""Event handlers of the page: each takes the page's values and returns its new ones."""

from __future__ import annotations

import html
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr

from sft.config.errors import UserError
from sft.evaluation.sampling import Sampling
from sft.inference.chat_session import Message
from sft.inference.web.model_pool import ModelPool
from sft.inference.web.saved import SavedConversations
from sft.inference.web.session import BASE, TUNED, ChatOptions, PageState, TabSession, stream_answers

MOST_SESSIONS = 500  # conversations kept in memory; beyond that the oldest is dropped

Row = dict[str, Any]


class Handlers:
    """The handlers of the page's events, with the conversations of its tabs.

    Args:
        pool: the models.
        saved: the saved conversations.
    """

    def __init__(self, pool: ModelPool, saved: SavedConversations) -> None:
        self.pool, self.saved = pool, saved
        self._sessions: OrderedDict[str, TabSession] = OrderedDict()
        self._lock = threading.Lock()

    def session(self, request: gr.Request) -> TabSession:
        """The conversation of the tab that a request comes from."""
        key = request.session_hash or ""
        with self._lock:
            session = self._sessions.setdefault(key, TabSession())
            self._sessions.move_to_end(key)
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)[1].stop.set()
        return session

    def leave(self, request: gr.Request) -> None:
        """Stop the answer of a closed tab and forget its conversation."""
        with self._lock:
            session = self._sessions.pop(request.session_hash or "", None)
        if session is not None:
            session.stop.set()

    def stop_all(self) -> None:
        """Stop every answer that is being generated."""
        with self._lock:
            for session in self._sessions.values():
                session.stop.set()

    # -- asking --------------------------------------------------------------------------------------------------------
    def send(
        self, text: str, model: str, system: str, compare: bool, *sampling: Any, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Answer a message, piece by piece.

        Yields:
            the message box, the two conversations, the note.
        """
        session = self.session(request)
        if not (text or "").strip():
            yield (gr.skip(), gr.skip(), gr.skip(), "there is nothing to answer")
            return
        for shown in self._answers(session, model, system, compare, sampling, text.strip()):
            # a message without an answer goes back into the box
            yield (text if shown.failed else "", *_rows(shown.sides), shown.note)

    def regenerate(
        self, model: str, system: str, compare: bool, *sampling: Any, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Answer the last message again. Yields the two conversations and the note."""
        for shown in self._answers(self.session(request), model, system, compare, sampling, None):
            yield (*_rows(shown.sides), shown.note)

    def _answers(
        self, session: TabSession, model: str, system: str, compare: bool, sampling: tuple[Any, ...], text: str | None
    ) -> Iterator[PageState]:
        try:
            if text is None and not session.sides[TUNED]:
                raise UserError("nothing has been asked yet")
            options = ChatOptions(model, system or "", bool(compare), sampling_of(sampling))
        except UserError as error:
            yield PageState(session.sides, str(error), failed=True)
            return
        yield from stream_answers(self.pool, session, options, text)

    def stop(self, request: gr.Request) -> None:
        """Stop the answer that is being generated; its text so far stays."""
        self.session(request).stop.set()

    def clear(self, request: gr.Request) -> tuple[Any, ...]:
        """Forget the conversation."""
        self.session(request).reset()
        return [], [], ""

    # -- files ---------------------------------------------------------------------------------------------------------
    def save(self, system: str, model: str, request: gr.Request) -> tuple[Any, ...]:
        """Save the conversation. Returns the note and the list of files."""
        session = self.session(request)
        tuned, base = session.sides
        try:
            if not tuned:
                raise UserError("nothing has been said yet")
            if session.options is not None:  # the values of the last question, not the page's current ones
                system, model = session.options.system, session.options.model
            both = _with_system(tuned, system), _with_system(base, system) if session.compared else []
            session.file = self.saved.write(both[TUNED], model, both[BASE], session.file)
        except UserError as error:
            return str(error), gr.skip()
        return f"saved in {session.file}", gr.update(choices=self.saved.names(), value=session.file.name)

    def open(self, name: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Open a saved conversation. Returns the two conversations, the system prompt and the note."""
        try:
            if not name:
                raise UserError("no conversation is selected")
            messages = self.saved.read(name)
        except UserError as error:
            return gr.skip(), gr.skip(), gr.skip(), str(error)
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        session = self.session(request)
        session.reset([message for message in messages if message["role"] != "system"])
        session.options = None
        return *_rows(session.sides), system, f"opened {name}"

    # -- models --------------------------------------------------------------------------------------------------------
    def pick(self, model: str) -> tuple[Any, ...]:
        """Select a model. Returns its facts, system prompt, the checkbox for the base, the base's side, and the
        note."""
        try:
            summary = self.pool.summary(model)
        except UserError as error:
            return "", gr.skip(), gr.skip(), gr.skip(), str(error)
        compare = gr.update(interactive=True) if summary.has_base else gr.update(interactive=False, value=False)
        side = gr.skip() if summary.has_base else gr.update(visible=False)
        return summary.facts, summary.system, compare, side, ""

    def lists(self) -> tuple[Any, ...]:
        """The current lists of models and files."""
        self.pool.scan_runs()
        return gr.update(choices=self.pool.names), gr.update(choices=self.saved.names())


def sampling_of(values: tuple[Any, ...]) -> Sampling:
    """From the page's fields, in the order of `FIELDS`.

    Raises:
        UserError: an empty field, a fraction where a whole number is asked for, or a value out of range.
    """
    given = dict(zip(FIELDS, values, strict=True))
    for name, default in asdict(Sampling()).items():
        value = given[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
            raise UserError("is not a number", where=name)
        if isinstance(default, int):
            if value != int(value):
                raise UserError(f"{value} is not a whole number", where=name)
            given[name] = int(value)
    return Sampling.of(given)


FIELDS = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed")


def _with_system(messages: list[Message], system: str) -> list[Message]:
    return [{"role": "system", "content": system}, *messages] if system else list(messages)


def _rows(sides: tuple[list[Message], list[Message]]) -> tuple[list[Row], list[Row]]:
    """The conversations as Gradio needs them: escaped, because it renders HTML even with Markdown off.

    A plain string would lose its indentation; a part of type text is kept as it is.
    """
    tuned, base = ([_row(message) for message in side] for side in sides)
    return tuned, base


def _row(message: Message) -> Row:
    return {"role": message["role"], "content": [{"type": "text", "text": html.escape(message["content"])}]}
