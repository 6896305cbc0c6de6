"""The two-way check: the trained text of some rows, found again by methods that share nothing with the first.

The first way renders what generation sees of each turn. The others are: marks around the other roles' contents, with
the headers and closings of the template measured on a small conversation; the template's own `{% generation %}`
blocks; the family's response marker, where marks tell nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sft.config.errors import UserError
from sft.template.bound import BoundTemplate
from sft.template.rendering.conversation import Conversation
from sft.template.rendering.messages import Marked, holds_marks
from sft.template.rendering.prefill import trained_from
from sft.template.rendering.render import GENERATION_CLOSE, GENERATION_OPEN, RenderError
from sft.template.rendering.spans import Rendered, is_on

Spans = dict[int, tuple[int, int]]  # by message


class Checked(Protocol):
    """What is looked at of an encoder, see `sft.data.labels.encoder.Encoder`."""

    bound: BoundTemplate
    markers: Any
    train_on: str
    contents: Any

    def render(self, conversation: Mapping[str, Any], /) -> list[Rendered] | str:
        """The conversation's texts and spans, or its problem."""


def compare(encoder: Checked, conversations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Find the masks of some conversations a second way and compare.

    Returns:
        `{"rows": …, "turns": …, "methods": {method: turns}}`: what was compared.

    Raises:
        UserError: where both masks differ, with both shown.
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
            ways = other_ways(encoder.bound.of_row(conversation), conversation, row, closings)
            for method, spans in ways:
                counts[method] += _agree(encoder.bound, row, spans, method)
            alone += sum(all(turn not in spans for _, spans in ways) for turn in row.turns)
    return {"rows": rows, "turns": turns, "methods": dict(counts), "found_one_way_only": alone}


def other_ways(
    bound: BoundTemplate, conversation: Mapping[str, Any], row: Rendered, closings: Mapping[str, str]
) -> list[tuple[str, Spans]]:
    """Each other method that can tell something of this row, with the spans that it finds."""
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
    """The spans without the beginning of an answer that the prompt holds."""
    return {turn: (trained_from(text, start, end, messages[turn], turn), end) for turn, (start, end) in spans.items()}


def _agree(bound: BoundTemplate, row: Rendered, spans: Spans, method: str) -> int:
    """How many turns both ways find alike.

    Raises:
        UserError: a turn that they find differently, with both shown.
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
    """Whether two spans differ by a policy of ours at most.

    A generation block may begin with the header that the generation prompt holds, and may end with whitespace or a
    control token after the stop token. A response marker does not know of whitespace before the answer, nor of stop
    tokens between the channels of one answer. Marks know both edges.
    """
    if first == other:
        return True
    if method == "response marker":
        if text[first[0] : other[0]] == bound.response_marker:
            return first[1] == other[1]  # a header that the generation prompt leaves to the model
        return not text[min(first[0], other[0]) : max(first[0], other[0])].strip() and other[1] <= first[1]
    if method != "generation blocks":
        return False
    rest = text[first[1] : other[1]]
    for token in bound.stop_tokens:
        rest = rest.replace(token, "")
    return other[0] <= first[0] < first[1] <= other[1] and not rest.strip()


def _shown(text: str, span: tuple[int, int]) -> str:
    """A span with a little of what surrounds it."""
    start, end = span
    inner = text[start:end]
    inner = inner if len(inner) <= 200 else f"{inner[:120]} … {inner[-70:]}"
    return f"{text[max(0, start - 25) : start]!r} [{inner!r}] {text[end : end + 25]!r}"


def measured_closings(bound: BoundTemplate) -> dict[str, str]:
    """What the template writes between an answer and the content of the next message, by that message's role.

    Measured on a conversation of two questions; "" is what it writes after the last answer.
    """
    question, answer = {"role": "user", "content": "zquser"}, {"role": "assistant", "content": "zqanswer"}
    found = {}
    for role, more in (("user", [{"role": "user", "content": "zqnext"}]), ("", [])):
        marked = Conversation(bound, [question, answer, *more]).marked()
        at = marked.text.rfind("zqanswer") + len("zqanswer") if marked is not None else -1
        if marked is not None and at >= len("zqanswer"):
            found[role] = marked.text[at : marked.after(1)]
    return found


def by_marks(
    bound: BoundTemplate,
    messages: Sequence[Mapping[str, Any]],
    row: Rendered,
    marked: Marked,
    closings: Mapping[str, str],
) -> Spans:
    """Spans between the contents of other roles: without the header before and the closing after.

    The header is the generation prompt after one short question, or after a tool result, whatever the row's own.
    """
    spans: Spans = {}
    for turn in row.turns:
        before = messages[turn - 1] if turn else None
        after = messages[turn + 1] if turn + 1 < len(messages) else None
        around = {turn - 1, turn + 1} if after is not None else {turn - 1}
        if before is None or not around <= marked.seen():
            continue  # no content of others on both sides to tell the turn by
        begin, limit = marked.before(turn), marked.after(turn)
        limit = len(row.text) if after is None else limit
        region = row.text[begin:limit]
        if before["role"] == "tool" and _holds_earlier_words(messages, turn, region):
            continue
        header = _measured_header(bound, before["role"])
        content = before.get("content") or ""
        edge = content[len(content.rstrip()) :]  # marks stand inside the whitespace of a content
        start = next((len(lead) for lead in (f"{header}", f"{edge}{header}") if region.startswith(lead)), None)
        if header is None or start is None:
            continue
        end = _closing_at(bound, region, start, closings.get(after["role"] if after is not None else ""))
        if end is not None:
            spans[turn] = (begin + start, begin + end)
    return spans


def _holds_earlier_words(messages: Sequence[Mapping[str, Any]], turn: int, region: str) -> bool:
    """Whether a template put the words beside a call after the call's result, where this turn's region is."""
    calling = next((message for message in reversed(messages[:turn]) if message["role"] == "assistant"), None)
    words = (calling.get("content") or "") if calling is not None else ""
    return bool(words) and words.strip() in region


def _measured_header(bound: BoundTemplate, role: str) -> str | None:
    """What the template writes between a content of this role and the answer that is to be generated."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "zquser"}]
    if role == "tool":
        call = {"type": "function", "function": {"name": "zqname", "arguments": {}}}
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "zqresult"},
        ]
    elif role != "user":
        return None
    prompt = Conversation(bound, messages).marked(add_generation_prompt=True)
    return prompt.text[prompt.before(len(messages)) :] if prompt is not None else None


def _closing_at(bound: BoundTemplate, region: str, start: int, closing: str | None) -> int | None:
    """Where a turn ends in its region: at the stop token of the measured closing, else at the last stop token."""
    if closing is not None and closing and region.endswith(closing) and len(region) - len(closing) >= start:
        at = len(region) - len(closing)
        ends = [closing.find(stop) + len(stop) for stop in bound.stop_tokens if stop in closing]
        return at + min(ends) if ends else None
    ends = [place + len(stop) for stop in bound.stop_tokens if (place := region.rfind(stop, start)) >= 0]
    return max(ends, default=None)


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
        return {}  # several blocks a turn, or a text of ours: the blocks do not tell turns apart
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
    # what the generation prompt writes after the marker: a think block that it opens
    opened = (_measured_header(bound, "user") or "").rpartition(marker)[2]
    for turn, start in zip(answers, starts, strict=True):
        start += len(opened) if row.text.startswith(opened, start) else 0
        ends = [place + len(stop) for stop in bound.stop_tokens if (place := row.text.find(stop, start)) >= 0]
        if turn in row.turns and ends:
            spans[turn] = (start, min(ends))
    return spans
