"""One assistant turn in a rendered text: where it begins, where it ends, and how generation sees it.

The prompt of a turn is the text of the messages before it with the generation prompt. The model has to produce what
the text of the messages up to and including the turn adds to it, up to the stop token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sft.config.text import shortened
from sft.template.bound import BoundTemplate
from sft.template.rendering.conversation import Conversation
from sft.template.rendering.messages import Marked, reasoning_of
from sft.template.rendering.prefill import Unlabelable, trained_from

_PIECES = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]|\w+|\s+|.", re.DOTALL)
_TAGS = re.compile(r"(?:<[^<>\s]*>|\s)*")
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Turn:
    """A turn as generation sees it.

    Args:
        text: the prompt, the turn, and what the template writes after it.
        start: where the prompt ends, including the beginning of the answer that it may contain.
        end: where the stop token ends.
        spliced: whether we put the prompt before the turn because the template does not render it so.
    """

    text: str
    start: int
    end: int
    spliced: bool = False

    @property
    def seen(self) -> str:
        """The prompt and the turn, up to the stop token."""
        return self.text[: self.end]


def as_generated(conversation: Conversation, turn: int, full: str, splice: bool = True) -> Turn | None:
    """A turn as generation sees it; None if that takes splicing and `splice` is False.

    Args:
        full: the text of the messages up to this turn.
        splice: whether to put the prompt before the turn's text if the template does not.

    Raises:
        Unlabelable: the turn is empty, or a part of it is missing from the text.
        RenderError: the template cannot render the messages before it.
    """
    message = conversation.messages[turn]
    prompt = conversation.prompt(turn)
    spliced = not full.startswith(prompt)
    if spliced:
        if not splice:
            return None
        full = _splice(conversation, turn, prompt, full)
    start = len(prompt)
    end = end_of(conversation.bound, full, start, message, turn)
    if end is None:
        full += stop_of(conversation.bound, message)
        end = len(full)
    return Turn(full, trained_from(full, start, end, message, turn), end, spliced)


def as_history(conversation: Conversation, turn: int, text: str, marked: Marked) -> tuple[int, int]:
    """The position of a turn that is rendered differently than in generation: between the contents before and after it.

    Args:
        text: the text of the whole conversation, with a stop token added if the template leaves the end open.
        marked: the same text with the positions of the other roles' contents.

    Raises:
        Unlabelable: the turn cannot be found there.
    """
    message, count = conversation.messages[turn], len(conversation.messages)
    around = [index for index in (turn - 1, turn + 1) if 0 <= index < count]
    if turn == 0 or not marked.seen().issuperset(around):
        raise Unlabelable(f"a turn that is rendered as history cannot be found: message {turn + 1}")
    begin, limit = marked.before(turn), marked.after(turn) if turn + 1 < count else len(text)
    start = begin + _header(conversation, turn, text[begin:limit])
    end = end_of(conversation.bound, text, start, message, turn, limit, with_reasoning=False)
    if end is None:
        raise Unlabelable(f"a turn has no stop token where it is rendered as history: message {turn + 1}")
    return trained_from(text, start, end, message, turn), end


def end_of(
    bound: BoundTemplate,
    text: str,
    start: int,
    message: Mapping[str, Any],
    turn: int,
    limit: int | None = None,
    with_reasoning: bool = True,
) -> int | None:
    """Where a turn ends: after the first stop token that follows all of its words.

    Args:
        start: where the turn begins.
        limit: where the text after it begins; None is the end of the text.
        with_reasoning: whether the turn's reasoning belongs to its words (history may omit it).

    Returns:
        The position after the stop token; None if the template leaves the turn open.

    Raises:
        Unlabelable: the turn is empty, a word is missing, or a stop token is part of the words, so that the model
            would learn to stop inside them.
    """
    limit = len(text) if limit is None else limit
    orders = expected_words(message, with_reasoning)
    if not orders:
        raise Unlabelable(f"an assistant turn is empty: message {turn + 1}")
    if token := next((token for token in bound.stop_tokens if holds(message, token)), None):
        raise Unlabelable(f"an assistant turn holds a stop token as text: {token}")
    last = start
    for stop in _either(tuple(bound.stop_tokens)).finditer(text, start, limit):
        last = stop.end()
        if any(_find(words, text, start, stop.start())[1] is None for words in orders):
            return last
    found = [_find(words, text, start, limit) for words in orders]
    if any(
        missing is None and place - len(words[-1]) >= last
        for (place, missing), words in zip(found, orders, strict=True)
    ):
        return None
    short = next((missing for _, missing in found if missing is not None), orders[0][-1])
    short = shortened(short, 60)
    raise Unlabelable(f"the chat template drops or rewrites part of a turn: message {turn + 1}, {short!r}")


@lru_cache(maxsize=64)
def _either(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern for any of the tokens, the longest first; one that never matches if there are none."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _find(words: list[str], text: str, start: int, limit: int) -> tuple[int, str | None]:
    """The position after words that follow each other in a text, and the first word that does not."""
    for piece in words:
        found = text.find(piece, start, limit)
        if found < 0:
            return start, piece
        start = found + len(piece)
    return start, None


def expected_words(message: Mapping[str, Any], with_reasoning: bool = True) -> list[list[str]]:
    """The words of an assistant message that its text must contain, in each order in which templates write them.

    Empty if it has neither content nor calls.
    """
    content = (message.get("content") or "").strip().rpartition(THINK_CLOSE)[2].strip()
    calls = [str((call.get("function") or call).get("name") or "") for call in message.get("tool_calls") or []]
    calls = [name for name in calls if name]
    spoken = [content] if content else []
    if not spoken and not calls:
        return []
    thought = [reasoning_of(message).strip()] if with_reasoning else []
    thought = [words for words in thought if words]
    orders = [[*thought, *spoken, *calls]]
    return [*orders, [*thought, *calls, *spoken]] if spoken and calls else orders


def holds(message: Mapping[str, Any], token: str) -> bool:
    """Whether an assistant message contains this token anywhere."""
    if token in (message.get("content") or "") or token in reasoning_of(message):
        return True
    calls = message.get("tool_calls")
    return bool(calls) and token in json.dumps(calls, ensure_ascii=False, default=str)


def stop_of(bound: BoundTemplate, message: Mapping[str, Any]) -> str:
    """The token that ends a turn which the template leaves open."""
    if message.get("tool_calls") and bound.tool_stop:
        return bound.tool_stop
    if not bound.stop_tokens:
        raise Unlabelable("the chat template ends no turn, and the tokenizer has no end-of-sentence token")
    return bound.stop_tokens[0]


def _splice(conversation: Conversation, turn: int, prompt: str, full: str) -> str:
    """The prompt followed by the turn, for a template that does not render the turn after its own prompt.

    What the prompt and the turn share is not repeated. A think block that the prompt opens and the turn does not
    close is closed here, after the turn's own reasoning or empty: the model has to produce that before its answer
    where the template drops reasoning (DeepSeek R1).
    """
    rest = _after_shared(prompt, full)
    if rest is None:
        marked = conversation.marked(turn + 1)
        if marked is None or marked.text != full or turn - 1 not in marked.seen():
            raise Unlabelable(f"a turn does not follow the generation prompt: message {turn + 1}")
        region = full[marked.before(turn) :]
        rest = region[_header(conversation, turn, region) :]
    reasoning = reasoning_of(conversation.messages[turn]).strip()
    if opens_thinking(prompt):
        if THINK_CLOSE not in rest:
            closing = f"{THINK_CLOSE}\n\n" + rest.lstrip("\n")
            rest = f"{reasoning}\n{closing}" if reasoning else closing
    elif reasoning and reasoning in rest:
        raise Unlabelable(f"the generation prompt leaves no room for a turn's reasoning: message {turn + 1}")
    return prompt + rest


def _after_shared(prompt: str, full: str) -> str | None:
    """The turn's text without what it shares with the prompt, if they differ only in the prompt's last tags."""
    shared = next((at for at, (one, other) in enumerate(zip(prompt, full, strict=False)) if one != other), 0)
    tail = max(0, shared - 60)
    shared = tail + common_header(prompt[tail:], full[tail:])
    return full[shared:] if _TAGS.fullmatch(prompt, shared) else None


def opens_thinking(prompt: str) -> bool:
    """Whether a generation prompt ends inside a think block."""
    tail = prompt[prompt.rfind(THINK_OPEN) :] if THINK_OPEN in prompt else ""
    return bool(tail) and len(tail) < 40 and THINK_CLOSE not in tail


def _header(conversation: Conversation, turn: int, region: str) -> int:
    """How many characters at the start of a region, which begins after the content before the turn, the prompt
    writes."""
    prompt = conversation.marked(turn, add_generation_prompt=True)
    if prompt is None:
        raise Unlabelable(f"a turn cannot be found in the text: message {turn + 1}")
    return common_header(prompt.text[prompt.before(turn) :], region)


def common_header(prompt: str, region: str) -> int:
    """The length of the common prefix of two texts, cut back to the end of a whole word or tag of the first."""
    shared = 0
    for piece in _PIECES.findall(prompt):
        if not region.startswith(piece, shared):
            break
        shared += len(piece)
    return shared
