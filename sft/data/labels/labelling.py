"""Labels of a rendered and tokenized row: which of its tokens are trained, and whether the row may be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

from sft.data.documents import IGNORE
from sft.data.labels.gate import Gate
from sft.data.labels.markers import Markers
from sft.data.labels.offsets import pieces_of, tokens_between
from sft.template.contents import Note
from sft.template.rendering.spans import Rendered

_MERGED = ("untrained_edges", "the first characters of answers, in one token with the generation prompt's last")


class Row(TypedDict):
    """One training example: token ids, labels (the id where trained, -100 elsewhere), and both as text."""

    input_ids: list[int]
    labels: list[int]
    text: str
    trained_text: list[str]


class Encoded(TypedDict):
    """The result for a conversation: its rows, or the reason why it has none, as `kind: details`.

    `notes` are findings that are not problems, as (kind, detail); see sft.data.report.notes.
    """

    rows: list[Row]
    problem: str | None
    notes: NotRequired[list[Note]]


class Labelling:
    """Finds the trained tokens of rows.

    Args:
        gate: checks the labels, and knows the stop tokens.
        markers: find the answers in the tokens; None takes the rendered spans.
        last: with markers, the last answer alone is trained.
    """

    def __init__(self, gate: Gate, markers: Markers | None, last: bool) -> None:
        self.gate, self.markers, self.last = gate, markers, last

    def label(self, row: Rendered, encoding: Any, notes: list[Note] | None = None) -> Row:
        """Labels by offsets: a token is trained where it lies inside a span, whatever its id.

        Args:
            row: text and spans.
            encoding: of the text, as `tokenizers` gives it.
            notes: collects the parts of spans that are not trained because their token begins in the prompt.
        """
        ids: list[int] = encoding.ids
        labels = [IGNORE] * len(ids)
        pieces = []
        stretches = self._stretches(row, encoding)
        if notes is not None and self.markers is None:
            begun = {start for _, _, start, _ in stretches}
            notes += [_MERGED for start, _ in row.spans if start not in begun]
        for first, last, start, end in stretches:
            labels[first : last + 1] = ids[first : last + 1]
            pieces.append(row.text[start:end])
        for start, end in row.masked:
            found = tokens_between(encoding, start, end)
            if found is not None:
                labels[found[0] : found[1] + 1] = [IGNORE] * (found[1] + 1 - found[0])
        if row.masked:
            pieces = pieces_of(row.text, labels, encoding.offsets)
        return {"input_ids": ids, "labels": labels, "text": row.text, "trained_text": pieces}

    def gated(self, rows: list[Row], raw: bool) -> Encoded:
        """The rows, or the gate's objection to one of them."""
        if self.markers is not None and not any(label != IGNORE for row in rows for label in row["labels"]):
            return {"rows": rows, "problem": "the response template is not in the row, which is fully masked"}
        problem = next((p for row in rows if (p := self.gate.row(row["input_ids"], row["labels"], raw))), None)
        return {"rows": [] if problem else rows, "problem": problem}

    def _stretches(self, row: Rendered, encoding: Any) -> list[tuple[int, int, int, int]]:
        """(first token, last token, start, end) of each trained segment, in tokens and in characters."""
        if self.markers is not None:
            offsets = encoding.offsets

            def elsewhere(at: int) -> bool:
                return any(start < offsets[at][1] and offsets[at][0] < stop for start, stop in row.others)

            found = [
                (first, self._cut(encoding.ids, first, end))
                for first, end in self.markers.spans(encoding.ids, elsewhere)
            ]
            found = found[-1:] if self.last else found
            return [(first, end - 1, offsets[first - 1][1], offsets[end - 1][1]) for first, end in found]
        spans = [(tokens_between(encoding, start, end), start, end) for start, end in row.spans]
        return [(*found[:2], max(start, found[2]), found[3]) for found, start, end in spans if found is not None]

    def _cut(self, ids: Sequence[int], first: int, end: int) -> int:
        """Where an answer found by markers ends: after its first stop token, else at the end of what was found."""
        for at in range(first + 1, end + 1):
            if self.gate.stops_at(ids, at):
                return at
        return end
