"""Render small conversations to find out what a chat template keeps, how it expects calls, and how a turn ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from sft.template.rendering.messages import Style, plain_messages
from sft.template.rendering.render import RenderError, day, render

# What a conversation may need from a template beyond user and assistant turns, with its name in messages.
FEATURES = {
    "system": "a system message",
    "later_system": "a system message after the first turn",
    "turns": "more than one turn",
    "tools": "the tool list",
    "calls": "tool calls",
    "results": "tool results",
    "parallel": "several calls in one turn",
    "said": "words beside a tool call",
    "reasoning": "reasoning",
}
_LISTED = {
    "type": "function",
    "function": {
        "name": "zqlisted",
        "description": "zqpurpose",
        "parameters": {
            "type": "object",
            "properties": {"zqkey": {"type": "string", "description": "zqmeaning"}},
            "required": ["zqkey"],
        },
    },
}
_KNOWN_CONTROL = re.compile(r"<[|｜/]?[^<>\s]{1,40}?[|｜]?>|\[/?[A-Z_]{2,40}\]")


def features(conversation: Mapping[str, Any]) -> frozenset[str]:
    """What a conversation needs from a chat template, as keys of FEATURES."""
    messages = conversation.get("messages") or []
    found = {"tools"} if conversation.get("tools") else set()
    for index, message in enumerate(messages):
        role = message.get("role")
        if role == "system":
            found.add("later_system" if index else "system")
        elif role == "tool":
            found.add("results")
        if role == "assistant":
            calls = message.get("tool_calls") or []
            found |= {"calls"} if calls else set()
            found |= {"parallel"} if len(calls) > 1 else set()
            found |= {"said"} if calls and (message.get("content") or "").strip() else set()
            found |= {"reasoning"} if any(message.get(key) for key in ("reasoning_content", "reasoning")) else set()
            found |= {"turns"} if index + 2 < len(messages) else set()
    return frozenset(found)


def _call(name: str = "zqname", value: str = "zqvalue") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": {"zqarg": value}}}


def _trial(feature: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A conversation with this feature, and the words that its text must contain."""
    user, answer = {"role": "user", "content": "zquser"}, {"role": "assistant", "content": "zqanswer"}
    calling = {"role": "assistant", "content": "", "tool_calls": [_call()]}
    result = {"role": "tool", "content": "zqresult"}
    if feature == "system":
        return {"messages": [{"role": "system", "content": "zqsystem"}, user, answer]}, ("zqsystem", "zquser")
    if feature == "later_system":
        later = {"role": "system", "content": "zqlater"}
        return {"messages": [user, answer, later, user, answer]}, ("zqlater",)
    if feature == "turns":
        more = [{"role": "user", "content": "zqmore"}, {"role": "assistant", "content": "zqlast"}]
        return {"messages": [user, answer, *more]}, ("zquser", "zqanswer", "zqmore", "zqlast")
    if feature == "tools":
        return {"messages": [user, answer], "tools": [_LISTED]}, ("zqlisted", "zquser")
    if feature == "reasoning":
        return {"messages": [user, {**answer, "reasoning_content": "zqthought"}]}, ("zqthought", "zqanswer")
    if feature == "parallel":
        calling = {**calling, "tool_calls": [_call(), _call("zqsecond", "zqother")]}
        conversation = [user, calling, result, {"role": "tool", "content": "zqnext"}, answer]
        return {"messages": conversation}, ("zqname", "zqsecond", "zqother", "zqresult", "zqnext")
    if feature == "said":
        return {"messages": [user, {**calling, "content": "zqsaid"}, result, answer]}, ("zqsaid", "zqname")
    words = ("zqname", "zqarg", "zqvalue") if feature == "calls" else ("zqresult",)
    return {"messages": [user, calling, result, answer]}, words


Renderer = Callable[[Mapping[str, Any], Style, bool], str]  # conversation, style, add_generation_prompt -> text


def renderer(text: str, variables: Mapping[str, Any], date: str | None = None) -> Renderer:
    """A function that renders conversations with one template, for probing."""

    context = {**variables, **day(date), "documents": None}

    def draw(conversation: Mapping[str, Any], style: Style, add_generation_prompt: bool = False) -> str:
        messages = plain_messages(conversation["messages"], style)
        return render(text, messages, {**context, "tools": conversation.get("tools")}, add_generation_prompt)

    return draw


def lost_features(draw: Renderer, style: Style, wanted: Iterable[str]) -> dict[str, str]:
    """The wanted features that a template loses, each with the reason: it drops it, or its own error."""
    out = {}
    for feature in wanted:
        conversation, words = _trial(feature)
        try:
            text = draw(conversation, style, False)
        except RenderError as error:
            out[feature] = str(error)
            continue
        if feature == "reasoning" and "zqanswer" in text and _opens_thinking(draw, conversation, style):
            continue  # the generation prompt begins the think block, so the turn can be put after it
        if not all(word in text for word in words):
            out[feature] = f"the chat template drops {FEATURES[feature]}"
    return out


def _opens_thinking(draw: Renderer, conversation: Mapping[str, Any], style: Style) -> bool:
    """Whether the generation prompt of this conversation's last turn ends inside a think block."""
    try:
        prompt = draw({**conversation, "messages": conversation["messages"][:-1]}, style, True)
    except RenderError:
        return False
    return prompt.rfind("<think>") > max(prompt.rfind("</think>"), len(prompt) - 40)


def find_style(draw: Renderer, wanted: Iterable[str]) -> tuple[Style, dict[str, str]]:
    """The style in which a template keeps most of the wanted features, and the features it still loses.

    The usual style is tried first, so others are used only where they keep more.
    """
    wanted = list(wanted)
    best: tuple[Style, dict[str, str]] | None = None
    plain = {"messages": [{"role": "user", "content": "zquser"}, {"role": "assistant", "content": "zqanswer"}]}
    for parts, null_content, json_arguments in product((False, True), repeat=3):
        style = Style(parts, null_content, json_arguments)
        try:
            text = draw(plain, style, False)
        except RenderError:
            continue
        if "zquser" not in text or "zqanswer" not in text or "'type'" in text or '"type"' in text:
            continue  # content parts that are printed as raw lists were not understood
        if null_content and _writes_none(draw, style):
            continue
        missing = lost_features(draw, style, wanted)
        if "reasoning" in missing:
            folded = replace(style, fold_reasoning=True)
            if not lost_features(draw, folded, ["reasoning"]):
                style = folded
                del missing["reasoning"]
        if "calls" in wanted and "calls" not in missing and not _takes_long_ids(draw, style):
            style = replace(style, short_ids=True)
        if best is None or len(missing) < len(best[1]):
            best = (style, missing)
        if not missing:
            break
    return best or (Style(), lost_features(draw, Style(), ["turns", *wanted]))


def _takes_long_ids(draw: Renderer, style: Style) -> bool:
    """Whether a template renders calls with ids like OpenAI's instead of nine letters or digits like Mistral's."""
    conversation, _ = _trial("calls")
    user, calling, result, answer = conversation["messages"]
    calling = {**calling, "tool_calls": [{**calling["tool_calls"][0], "id": "call_zq0123456789abcdef"}]}
    result = {**result, "tool_call_id": "call_zq0123456789abcdef"}
    try:
        draw({"messages": [user, calling, result, answer]}, style, False)
    except RenderError:
        return False
    return True


def _writes_none(draw: Renderer, style: Style) -> bool:
    """Whether a template prints `None` for a turn without content."""
    try:
        return "None" in draw(_trial("calls")[0], style, False)
    except RenderError:
        return False


def first_control(text: str, known: Sequence[str]) -> str | None:
    """The first control token in a text: the earliest known one, and the longest of those at the same position."""
    places = [(place, -len(token), token) for token in known if token and (place := text.find(token)) >= 0]
    if places:
        return min(places)[2]
    head = text.lstrip()
    match = _KNOWN_CONTROL.match(head)
    return match.group() if match else None


def find_stop(draw: Renderer, style: Style, known: Sequence[str], likely: Sequence[str]) -> str | None:
    """The token that ends an assistant turn in a template's text; None where the last turn is left open.

    It is looked for in the text after an answer, both at the end and before a user's message. A likely one found in
    both is preferred (some templates write another token before it, some add one only at the end of the text).

    Args:
        known: all control tokens: the tokenizer's added ones and the family's.
        likely: tokens known to end turns: the tokenizer's end-of-sentence token, the family's stop tokens.
    """
    user, answer = {"role": "user", "content": "zquser"}, {"role": "assistant", "content": "zqanswer"}
    last = _after_answer(draw, style, [user, answer])
    between = _after_answer(draw, style, [user, answer, {"role": "user", "content": "zqmore"}])
    common = [token for token in likely if token in last and (token in between or not between)]
    return first_control(last, common) if common else first_control(last, known)


def _after_answer(draw: Renderer, style: Style, messages: list[dict[str, Any]]) -> str:
    """The text between the probe's answer and its next message, or the end; empty where it cannot be rendered."""
    try:
        text = draw({"messages": messages}, style, False)
    except RenderError:
        return ""
    end = text.rfind("zqmore") if len(messages) > 2 else len(text)
    start = text.rfind("zqanswer", 0, max(end, 0))
    return text[start + len("zqanswer") : end] if start >= 0 else ""
