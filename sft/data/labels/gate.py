"""Conditions that a labelled row and a source must meet before they are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sft.data.documents import IGNORE
from sft.template.bound import BoundTemplate


class Gate:
    """Cheap checks of rows and sources, by token ids.

    Args:
        bound: the chat template of the run.
        tokenizer: the run's tokenizer.
        train_on: as `dataset.train_on`; the end of a turn is looked at where turns are trained.
        masking: as `dataset.masking`.
    """

    def __init__(self, bound: BoundTemplate, tokenizer: Any, *, train_on: str = "assistant", masking: str = "template"):
        self.bos, self.bos_id = bound.bos, tokenizer.bos_token_id if bound.bos else None
        ends = [*bound.stop_tokens, *([bound.tool_stop] if bound.tool_stop else [])]
        self.stops = tuple(tuple(tokenizer.encode(stop, add_special_tokens=False)) for stop in ends)
        self.stop_ids = frozenset(stop[0] for stop in self.stops if len(stop) == 1)
        self.stop = bound.stop_tokens[0] if bound.stop_tokens else "none"
        self.turns, self.masking = train_on != "all", masking

    def row(self, input_ids: Sequence[int], labels: Sequence[int], raw: bool = False) -> str | None:
        """What is wrong with a row, or None: BOS doubled or missing, nothing trained, a turn without an end.

        Args:
            input_ids, labels: of one row, before packing.
            raw: whether the row is raw text, which has no turns.
        """
        if self.bos_id is not None:
            if len(input_ids) > 1 and input_ids[0] == input_ids[1] == self.bos_id:
                return f"the row begins with {self.bos} twice"
            if not input_ids or input_ids[0] != self.bos_id:
                return f"the row does not begin with {self.bos}, as the tokenizer would have it"
        ends = list(span_ends(labels))
        if not ends:
            return "no token of the row is trained"
        if raw or not self.turns:
            return None
        if not all(self.stops_at(labels, end) for end in ends):
            return f"the end-of-turn token is not trained: {self.stop}"
        return None

    def stops_at(self, labels: Sequence[int], end: int) -> bool:
        """Whether a trained stretch that ends before position `end` ends with a stop token."""
        return any(stop and tuple(labels[end - len(stop) : end]) == stop for stop in self.stops)

    @staticmethod
    def source(name: str, rows: int, trained_tokens: int) -> str | None:
        """What is wrong with a source, or None: rows, but no token to train on."""
        if rows and not trained_tokens:
            return f"source {name} has {rows} rows but no token to train on"
        return None


def span_ends(labels: Sequence[int]) -> Iterator[int]:
    """The positions after each stretch of trained tokens."""
    trained = False
    for at, label in enumerate(labels):
        if trained and label == IGNORE:
            yield at
        trained = label != IGNORE
    if trained:
        yield len(labels)
