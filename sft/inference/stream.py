"""Streaming an answer's text, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from transformers.generation.streamers import BaseStreamer


class GenerationStopped(Exception):
    """Generation of an answer was stopped from outside.

    Attributes:
        shown: the text so far.
    """

    def __init__(self, shown: str) -> None:
        super().__init__("stopped")
        self.shown = shown


class Stream(BaseStreamer):
    """Shows text as soon as it is final: no partial characters, no white space at the ends, no part of a stop text.

    Args:
        tokenizer: decodes; special tokens are left out.
        show: called with each new piece.
        stop_texts: stops of several tokens; a possible beginning of one is held back.
        stopped: called with each token, and before the first; true ends the answer with `GenerationStopped`.
    """

    def __init__(
        self,
        tokenizer: Any,
        show: Callable[[str], None],
        stop_texts: Iterable[str] = (),
        stopped: Callable[[], bool] | None = None,
    ) -> None:
        self.tokenizer, self.show, self.stop_texts, self.stopped = tokenizer, show, tuple(stop_texts), stopped
        self.ids: list[int] = []
        self.shown = ""
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """Receive the prompt, which comes first, or the next token of the answer.

        Raises:
            GenerationStopped: `stopped` returned true.
        """
        if self.stopped is not None and self.stopped():
            raise GenerationStopped(self.shown)
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.ids += value.reshape(-1).tolist()
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._advance(self._certain(text))

    def end(self) -> None:
        """The answer has ended; held back text is shown by `finish`."""

    def finish(self, answer: str) -> None:
        """Show the rest of the complete answer."""
        if answer.startswith(self.shown):
            self._advance(answer)

    def _advance(self, text: str) -> None:
        piece = text[len(self.shown) :] if text.startswith(self.shown) else ""
        if piece:
            self.shown += piece
            self.show(piece)

    def _certain(self, text: str) -> str:
        """The text without an end that could still change."""
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        for stop in self.stop_texts:
            if (place := text.find(stop)) >= 0:
                text = text[:place]
            held = next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
            text = text[: len(text) - held]
        return text.strip()
