"""The trained text of a row by what stands around it: the contents of the other roles, and the template's own words.

Marks in the others' contents tell where those begin and end; the headers and closings between them and an answer are
measured on a small conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sft.template.bound import BoundTemplate
from sft.template.rendering.conversation import Conversation
from sft.template.rendering.messages import Marked
from sft.template.rendering.spans import Rendered

Spans = dict[int, tuple[int, int]]  # by message


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
            continue  # the turn is not enclosed by contents of other roles
        begin, limit = marked.before(turn), marked.after(turn)
        limit = len(row.text) if after is None else limit
        region = row.text[begin:limit]
        if before["role"] == "tool" and _holds_earlier_words(messages, turn, region):
            continue
        header = measured_header(bound, before["role"])
        content = before.get("content") or ""
        edge = content[len(content.rstrip()) :]  # marks are placed inside the whitespace of a content
        start = next((len(lead) for lead in (f"{header}", f"{edge}{header}") if region.startswith(lead)), None)
        if header is None or start is None:
            continue
        end = _closing_at(bound, region, start, closings.get(after["role"] if after is not None else ""))
        if end is not None:
            spans[turn] = (begin + start, begin + end)
    return spans


def _holds_earlier_words(messages: Sequence[Mapping[str, Any]], turn: int, region: str) -> bool:
    """Whether a template moved the text beside a call behind the call's result, into this turn's region."""
    calling = next((message for message in reversed(messages[:turn]) if message["role"] == "assistant"), None)
    words = (calling.get("content") or "") if calling is not None else ""
    return bool(words) and words.strip() in region


def measured_header(bound: BoundTemplate, role: str) -> str | None:
    """The text that the template writes between a content of this role and the answer to be generated."""
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
