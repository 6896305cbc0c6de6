"""The two-way check: the trained text of some rows, found again by methods that share nothing with the first.

The first way renders what generation sees of each turn. The others are: marks around the other roles' contents, with
the template's headers and closings measured on a small conversation; the template's own `{% generation %}` blocks;
the family's response marker, where marks are inconclusive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sft.config.errors import UserError
from sft.data.labels.spans_by_contents import Spans, by_marks, measured_closings
from sft.data.labels.spans_by_template import by_generation, by_marker
from sft.template.bound import BoundTemplate
from sft.template.rendering.conversation import Conversation
from sft.template.rendering.prefill import trained_from
from sft.template.rendering.spans import Rendered


class Checked(Protocol):
    """The part of an encoder that is checked, see `sft.data.labels.encoder.Encoder`."""

    bound: BoundTemplate
    markers: Any
    train_on: str
    contents: Any

    def render(self, conversation: Mapping[str, Any], /) -> list[Rendered] | str:
        """The conversation's texts and spans, or its problem."""


def compare(encoder: Checked, conversations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Find the label masks of some conversations a second way and compare.

    Returns:
        `{"rows": …, "turns": …, "methods": {method: turns}}`: what was compared.

    Raises:
        UserError: both masks differ; shows both.
    """
    counts: Counter[str] = Counter()
    rows = turns = alone = 0
    closings = measured_closings(encoder.bound)
    for conversation in conversations:
        rendered = encoder.render(conversation)
        if isinstance(rendered, str) or "messages" not in conversation:
            continue
        if encoder.markers is not None or encoder.train_on == "all":
            continue
        conversation = encoder.contents.prepared(conversation)
        for row in rendered:
            rows, turns = rows + 1, turns + len(row.turns)
            ways = independent_spans(encoder.bound.of_row(conversation), conversation, row, closings)
            for method, spans in ways:
                counts[method] += _agree(encoder.bound, row, spans, method)
            alone += sum(all(turn not in spans for _, spans in ways) for turn in row.turns)
    return {"rows": rows, "turns": turns, "methods": dict(counts), "found_one_way_only": alone}


def independent_spans(
    bound: BoundTemplate, conversation: Mapping[str, Any], row: Rendered, closings: Mapping[str, str]
) -> list[tuple[str, Spans]]:
    """Each independent method that applies to this row, with the spans that it finds."""
    messages, tools = conversation["messages"][: row.upto], conversation.get("tools")
    found = []
    if not row.spliced:
        if blocks := by_generation(bound, messages, tools, row):
            found.append(("generation blocks", blocks))
        marked = Conversation(bound, messages, tools).marked()
        if marked is not None and row.text.startswith(marked.text):
            found.append(("marks", by_marks(bound, messages, row, marked, closings)))
    known = {turn for _, spans in found for turn in spans}
    if bound.response_marker and not known.issuperset(row.turns):
        by_text = by_marker(bound, messages, row)
        found.append(("response marker", {turn: span for turn, span in by_text.items() if turn not in known}))
    return [(method, _without_prefill(spans, messages, row.text)) for method, spans in found]


def _without_prefill(spans: Spans, messages: Sequence[Mapping[str, Any]], text: str) -> Spans:
    """The spans without the prefill of an answer."""
    return {turn: (trained_from(text, start, end, messages[turn], turn), end) for turn, (start, end) in spans.items()}


def _agree(bound: BoundTemplate, row: Rendered, spans: Spans, method: str) -> int:
    """The number of turns that both ways find alike.

    Raises:
        UserError: they find a turn differently; shows both.
    """
    agreed = 0
    for turn, (start, end) in zip(row.turns, row.spans, strict=True):
        if turn not in spans:
            continue
        if not _same(bound, row.text, (start, end), spans[turn], method):
            raise UserError(
                f"two ways to find the trained text of message {turn + 1} differ:\n"
                f"  by rendered prefixes: {_shown(row.text, (start, end))}\n"
                f"  by {method}: {_shown(row.text, spans[turn])}",
                where="template",
                remedy="take another template (template=chatml), or dataset.masking=response_template",
            )
        agreed += 1
    return agreed


def _same(bound: BoundTemplate, text: str, first: tuple[int, int], other: tuple[int, int], method: str) -> bool:
    """Whether two spans are equal up to our own policies.

    A generation block may begin with the header that the generation prompt holds, and may end with whitespace or a
    control token after the stop token. A response marker ignores whitespace before the answer, and stop tokens between
    the channels of one answer. Marks give both edges.
    """
    if first == other:
        return True
    if method == "response marker":
        if text[first[0] : other[0]] == bound.response_marker:
            return first[1] == other[1]  # a header that the model has to generate
        return not text[min(first[0], other[0]) : max(first[0], other[0])].strip() and other[1] <= first[1]
    if method != "generation blocks":
        return False
    rest = text[first[1] : other[1]]
    for token in bound.stop_tokens:
        rest = rest.replace(token, "")
    return other[0] <= first[0] < first[1] <= other[1] and not rest.strip()


def _shown(text: str, span: tuple[int, int]) -> str:
    """A span with some context."""
    start, end = span
    inner = text[start:end]
    inner = inner if len(inner) <= 200 else f"{inner[:120]} … {inner[-70:]}"
    return f"{text[max(0, start - 25) : start]!r} [{inner!r}] {text[end : end + 25]!r}"
