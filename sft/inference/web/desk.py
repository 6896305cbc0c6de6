"""What the page's buttons do; each function takes the page's values and gives its new ones."""

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
from sft.inference.talk import Message
from sft.inference.web.saved import Saved
from sft.inference.web.session import BASE, TUNED, Session, Shown, Wish, answers
from sft.inference.web.shelf import Shelf

MOST_SESSIONS = 500  # conversations kept in memory; the oldest gives way

Row = dict[str, Any]


class Desk:
    """The tabs' conversations, and what is done with them.

    Args:
        shelf: the models.
        saved: the files.
    """

    def __init__(self, shelf: Shelf, saved: Saved) -> None:
        self.shelf, self.saved = shelf, saved
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def session(self, request: gr.Request) -> Session:
        """The conversation of the tab that a request comes from."""
        key = request.session_hash or ""
        with self._lock:
            session = self._sessions.setdefault(key, Session())
            self._sessions.move_to_end(key)
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)[1].stop.set()
        return session

    def leave(self, request: gr.Request) -> None:
        """A tab was closed: its answer ends, its conversation is forgotten."""
        with self._lock:
            session = self._sessions.pop(request.session_hash or "", None)
        if session is not None:
            session.stop.set()

    def stop_all(self) -> None:
        """End every answer that is being made."""
        with self._lock:
            for session in self._sessions.values():
                session.stop.set()

    # -- asking --------------------------------------------------------------------------------------------------------
    def send(
        self, text: str, model: str, system: str, compare: bool, *sampling: Any, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Answer a message, piece by piece.

        Yields:
            what stands in the message box, the two conversations, the note.
        """
        session = self.session(request)
        if not (text or "").strip():
            yield (gr.skip(), gr.skip(), gr.skip(), "there is nothing to answer")
            return
        for shown in self._answers(session, model, system, compare, sampling, text.strip()):
            # a message that got no answer goes back into the box
            yield (text if shown.failed else "", *_rows(shown.sides), shown.note)

    def regenerate(
        self, model: str, system: str, compare: bool, *sampling: Any, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Another answer to the last message. Yields the two conversations and the note."""
        for shown in self._answers(self.session(request), model, system, compare, sampling, None):
            yield (*_rows(shown.sides), shown.note)

    def _answers(
        self, session: Session, model: str, system: str, compare: bool, sampling: tuple[Any, ...], text: str | None
    ) -> Iterator[Shown]:
        try:
            if text is None and not session.sides[TUNED]:
                raise UserError("nothing has been asked yet")
            wish = Wish(model, system or "", bool(compare), sampling_of(sampling))
        except UserError as error:
            yield Shown(session.sides, str(error), failed=True)
            return
        yield from answers(self.shelf, session, wish, text)

    def stop(self, request: gr.Request) -> None:
        """End the answer that is being made; what there is of it stays."""
        self.session(request).stop.set()

    def clear(self, request: gr.Request) -> tuple[Any, ...]:
        """Forget the conversation."""
        self.session(request).reset()
        return [], [], ""

    # -- files ---------------------------------------------------------------------------------------------------------
    def save(self, system: str, model: str, request: gr.Request) -> tuple[Any, ...]:
        """Write the conversation. Gives the note and the list of files."""
        session = self.session(request)
        tuned, base = session.sides
        try:
            if not tuned:
                raise UserError("nothing has been said yet")
            if session.wish is not None:  # as it was asked, not as the page is set by now
                system, model = session.wish.system, session.wish.model
            both = _with_system(tuned, system), _with_system(base, system) if session.compared else []
            session.file = self.saved.write(both[TUNED], model, both[BASE], session.file)
        except UserError as error:
            return str(error), gr.skip()
        return f"saved in {session.file}", gr.update(choices=self.saved.names(), value=session.file.name)

    def open(self, name: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Go on with a saved conversation. Gives the two conversations, the system prompt and the note."""
        try:
            if not name:
                raise UserError("no conversation is picked")
            messages = self.saved.read(name)
        except UserError as error:
            return gr.skip(), gr.skip(), gr.skip(), str(error)
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        session = self.session(request)
        session.reset([message for message in messages if message["role"] != "system"])
        session.wish = None
        return *_rows(session.sides), system, f"opened {name}"

    # -- models --------------------------------------------------------------------------------------------------------
    def pick(self, model: str) -> tuple[Any, ...]:
        """Another model. Gives its facts, its system prompt, whether it can be compared, the base's side, the note."""
        try:
            card = self.shelf.card(model)
        except UserError as error:
            return "", gr.skip(), gr.skip(), gr.skip(), str(error)
        compare = gr.update(interactive=True) if card.has_base else gr.update(interactive=False, value=False)
        side = gr.skip() if card.has_base else gr.update(visible=False)
        return card.facts, card.system, compare, side, ""

    def lists(self) -> tuple[Any, ...]:
        """The models and the files that there are by now."""
        self.shelf.look()
        return gr.update(choices=self.shelf.names), gr.update(choices=self.saved.names())


def sampling_of(values: tuple[Any, ...]) -> Sampling:
    """From the page's fields, in the order of `FIELDS`.

    Raises:
        UserError: an empty field, a fraction where a whole number is asked for, or a value out of range.
    """
    given = dict(zip(FIELDS, values, strict=True))
    for name, default in asdict(Sampling()).items():
        value = given[name]
        if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
            raise UserError("is no number", where=name)
        if isinstance(default, int):
            if value != int(value):
                raise UserError(f"{value} is no whole number", where=name)
            given[name] = int(value)
    return Sampling.of(given)


FIELDS = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed")


def _with_system(messages: list[Message], system: str) -> list[Message]:
    return [{"role": "system", "content": system}, *messages] if system else list(messages)


def _rows(sides: tuple[list[Message], list[Message]]) -> tuple[list[Row], list[Row]]:
    """As Gradio shows them: escaped, for it takes what it is given for HTML, with Markdown off too.

    A plain string would lose its indentation there; a part of type text goes through as it is.
    """
    tuned, base = ([_row(message) for message in side] for side in sides)
    return tuned, base


def _row(message: Message) -> Row:
    return {"role": message["role"], "content": [{"type": "text", "text": html.escape(message["content"])}]}
