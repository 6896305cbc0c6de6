"""Values of a row as text and as JSON, or the reason why they cannot be read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sft.config.text import shortened
from sft.data.formats.errors import RowError

DEEPEST = 64  # levels of nesting that tools and arguments may have; templates render them by recursion
EMPTY: tuple[Any, ...] = (None, "", [], {})  # values that mean the same as a missing key
MEDIA = ("image", "images", "video", "videos", "audio", "audios")


def check_text(text: str, what: str) -> str:
    """The text itself. Raises RowError where it is not valid Unicode or has NUL characters."""
    if not text.isascii():
        _check_unicode(text, what)
    if "\0" in text:
        raise RowError("NUL character", f" in the {what}")
    return text


def is_blank(text: str) -> bool:
    """Whether a text has nothing visible in it."""
    return not text or text.isspace()


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; one with half a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: Any) -> str:
    """A value's type in the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    for kind, name in ((int, "a number"), (float, "a number"), (str, "text"), (bytes, "bytes")):
        if isinstance(value, kind):
            return name
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, Sequence) else type(value).__name__


def list_of(value: Any, what: str) -> list[Any]:
    """A list: as it is, from JSON text, or from an object of equally long lists, as some tables store it."""
    if isinstance(value, str):
        value = parse_json_text(value, what)
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        lengths = {len(column) for column in value.values()}
        if len(lengths) == 1:
            rows = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
            return [{key: item for key, item in row.items() if item is not None} for row in rows]
    if value is None:
        raise RowError("null", f" as the {what}")
    if not isinstance(value, list):
        raise RowError("not a list", f": the {what} is {kind_of(value)}")
    return value


def parse_json_text(text: str, what: str) -> Any:
    """JSON text as a value."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(
            "not JSON", f": the {what}, {shortened(text, 40)!r} ({getattr(error, 'msg', 'nested too deeply')})"
        ) from None


def checked_json(value: Any, what: str, depth: int = 0) -> Any:
    """The value itself, after checking that every template can render it as JSON."""
    if depth > DEEPEST:
        raise RowError("nested too deeply", f": the {what}")
    if isinstance(value, str):
        if not value.isascii():
            _check_unicode(value, what)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise RowError("not JSON", f": {kind_of(value)} in the {what}")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise RowError("not JSON", f": the key {key!r} in the {what}")
            checked_json(item, what, depth + 1)
    elif isinstance(value, list):
        for item in value:
            checked_json(item, what, depth + 1)
    elif value is not None and not isinstance(value, int):
        raise RowError("not JSON", f": {type(value).__name__} in the {what}")
    return value


def as_json(value: Any, what: str) -> str:
    """A value as JSON text, not escaped to ASCII."""
    return json.dumps(checked_json(value, what), ensure_ascii=False)


def refuse_media(row: Mapping[str, Any], what: str) -> None:
    """Raise RowError where a row or message has images, audio or video."""
    for key in MEDIA:
        if key in row and row[key] not in (None, "", []):
            raise RowError("not text alone", f": the {what} has {key}")


def _check_unicode(text: str, what: str) -> None:
    if not is_unicode(text):
        raise RowError("invalid Unicode", f": half a surrogate pair in the {what}")
