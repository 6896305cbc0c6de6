"""The trained text of a row by what its template writes: `{% generation %}` blocks, or the marker before an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sft.data.labels.spans_by_contents import Spans, measured_header
from sft.template.bound import BoundTemplate
from sft.template.rendering.messages import holds_marks
from sft.template.rendering.render import GENERATION_CLOSE, GENERATION_OPEN, RenderError
from sft.template.rendering.spans import Rendered, is_on


def by_generation(bound: BoundTemplate, messages: Sequence[Mapping[str, Any]], tools: Any, row: Rendered) -> Spans:
    """Spans by the template's `{% generation %}` blocks, one for each assistant message; empty without them."""
    if holds_marks(messages):
        return {}
    try:
        text = bound.draw(bound.plain(messages), tools, generation_marks=True)
    except RenderError:
        return {}
    blocks, plain = [], ""
    for piece in text.split(GENERATION_OPEN):
        inside, closing, outside = piece.partition(GENERATION_CLOSE)
        if closing:
            blocks.append((len(plain), len(plain) + len(inside)))
        plain += inside + outside
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    blocks = [block for block in blocks if block[0] < block[1]]
    if len(blocks) != len(answers) or not row.text.startswith(plain):
        return {}  # several blocks per turn, or a text of ours: blocks cannot be assigned to turns
    spans = dict(zip(answers, blocks, strict=True))
    last = answers[-1]
    if spans[last][1] == len(plain):  # a stop token was added to a turn that the template leaves open
        spans[last] = (spans[last][0], len(row.text))
    return {turn: span for turn, span in spans.items() if is_on(messages[turn])}


def by_marker(bound: BoundTemplate, messages: Sequence[Mapping[str, Any]], row: Rendered) -> Spans:
    """Spans from each response marker to the first stop token; empty where markers and turns do not pair up."""
    marker = bound.response_marker or ""
    if any(marker in (message.get("content") or "") for message in messages):
        return {}
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    starts, at = [], row.text.find(marker)
    while marker and at >= 0:
        starts.append(at + len(marker))
        at = row.text.find(marker, at + len(marker))
    if len(starts) != len(answers):
        return {}
    spans: Spans = {}
    # the rest of the generation prompt after the marker: a think block that it opens
    opened = (measured_header(bound, "user") or "").rpartition(marker)[2]
    for turn, start in zip(answers, starts, strict=True):
        start += len(opened) if row.text.startswith(opened, start) else 0
        ends = [place + len(stop) for stop in bound.stop_tokens if (place := row.text.find(stop, start)) >= 0]
        if turn in row.turns and ends:
            spans[turn] = (start, min(ends))
    return spans
