"""Contents given as lists of parts: text, and the reasoning of an assistant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft.data.formats.errors import RowError
from sft.data.formats.values import EMPTY, check_text, kind_of
from sft.data.report.notes import note

_TEXT = {"text": ("text", "value", "content")}
_TEXT |= {"input_text": _TEXT["text"], "output_text": _TEXT["text"]}
_REASONING = {kind: (kind, "value", "text", "content") for kind in ("reasoning", "thinking")}
_MEDIA = ("image", "image_url", "input_image", "video", "video_url", "audio", "audio_url", "input_audio", "file")


def text_of(value: Any, what: str) -> str:
    """Text as it is: a string, or text parts joined without a separator.

    Args:
        value: a string, or a list of {"type": "text", "text": ...} parts, among which strings may stand.
        what: its name in the reason ("content of message 2").

    Raises:
        RowError: null, another type, another modality, a list of bare strings (alternatives or pieces: nothing says
            which), text that is not valid Unicode or has NUL characters.
    """
    if isinstance(value, str):
        return check_text(value, what)
    if not isinstance(value, list):
        raise (
            RowError("null", f" as the {what}")
            if value is None
            else RowError("not text", f": the {what} is {kind_of(value)}")
        )
    _refuse_bare(value, what)
    return "".join(_part(part, what, _TEXT) for part in value)


def text_and_reasoning(value: Any, what: str) -> tuple[str, str]:
    """An assistant's content as text, and the reasoning among its parts.

    Raises:
        RowError: as text_of; reasoning after the text, which no template can render.
    """
    if not isinstance(value, list):
        return text_of(value, what), ""
    _refuse_bare(value, what)
    text = reasoning = ""
    for part in value:
        if isinstance(part, dict) and part.get("type") in _REASONING:
            if text:
                raise RowError("reasoning after the text", f" in the {what}")
            reasoning += _part(part, what, _REASONING)
        else:
            text += _part(part, what, _TEXT)
    return text, reasoning


def reasoning_text(value: Any, what: str) -> str:
    """Reasoning given as text, or as a list of text or reasoning parts."""
    if isinstance(value, list):
        text, reasoning = text_and_reasoning(value, what)
        return reasoning + text
    return text_of(value, what)


def is_text_parts(value: Any) -> bool:
    """Whether a list holds only text parts; a tool's result may be a JSON list of objects with a `type`.

    Raises:
        RowError: it has parts of pictures or sound.
    """
    if not isinstance(value, list) or not value or not all(isinstance(part, dict) for part in value):
        return False
    for part in value:
        kind = part.get("type")
        if kind in _MEDIA and (kind in part or "source" in part):
            raise RowError("not text alone", f": a part of type {kind!r} in a tool's result")
    kinds = [_TEXT.get(part["type"]) if isinstance(part.get("type"), str) else None for part in value]
    return all(
        keys and any(isinstance(part.get(key), str) for key in keys) for part, keys in zip(value, kinds, strict=True)
    )


def _refuse_bare(value: list[Any], what: str) -> None:
    if value and all(isinstance(part, str) for part in value):
        raise RowError("a list of texts where one belongs", f": the {what} has {len(value)}")


def _part(part: Any, what: str, kinds: Mapping[str, tuple[str, ...]]) -> str:
    if isinstance(part, str):
        return check_text(part, what)
    if not isinstance(part, dict):
        raise RowError("not text", f": a part of the {what} is {kind_of(part)}")
    kind = part.get("type", "text")
    if not isinstance(kind, str) or kind not in kinds:
        raise RowError("not text alone", f": the {what} has a part of type {kind!r}")
    key = next((key for key in kinds[kind] if part.get(key) is not None), None)
    if key is None or not isinstance(part[key], str):
        why = f"{kind_of(part[key])} as its {key}" if key else f"no text; its keys are {', '.join(map(str, part))}"
        raise RowError("not text", f": a part of the {what} has {why}")
    for other, item in part.items():
        if other not in ("type", key) and item not in EMPTY:
            note("unread_message_keys", f"content[].{other}")
    return check_text(part[key], what)
