"""Some conversations of a source, of every structure among its first rows, from which a chat template is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from sft.data.cache import Cache
from sft.data.cache.keys import key_of
from sft.data.content import Options, content_of, facts_of
from sft.data.formats import recognise
from sft.data.formats.converter import HEAD
from sft.data.formats.errors import without_broken
from sft.data.readers import read_source
from sft.data.source import Source


def sample(
    name: str, source: Source, options: Options, cache: Cache, where: str, count: int
) -> tuple[list[dict[str, Any]], str]:
    """Some of a source's conversations, of every structure among its first rows, and the name of its format.

    `sft.template.bind` chooses a template from these. Cached, so that a second run reads no row for it.

    Raises:
        UserError: as `load`, for the first rows.
    """
    content = content_of(source, cache, where)
    key = key_of({"sample": count, "rows": content, **facts_of(source, options)})
    entry = cache.load(key) if content is not None else None
    if entry is None:
        head = [row for _, row in islice(read_source(source, name, where), HEAD)]
        converter = recognise(
            source, head, where, use_text_column=options.use_text_column, consecutive=options.consecutive
        )
        chosen = _of_every_shape(without_broken(converter.to_conversation, head), count)
        if content is None:
            return chosen, converter.format
        with cache.writer(key) as writer:
            entry = writer.commit({"conversations": chosen, "format": converter.format})
    return entry.meta["conversations"], entry.meta["format"]


def _of_every_shape(conversations: Iterable[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """At most `count` conversations, those with a new structure first."""
    seen: set[Any] = set()
    new: list[dict[str, Any]] = []
    known: list[dict[str, Any]] = []
    for conversation in conversations:
        shape = _shape(conversation)
        if shape not in seen:
            seen.add(shape)
            new.append(conversation)
        elif len(known) < count:
            known.append(conversation)
    return [*new, *known][:count]


def _shape(conversation: Mapping[str, Any]) -> Any:
    """The structure that matters to a template: the sequence of roles, and which parts messages have."""
    messages = conversation.get("messages", [])
    roles = [message["role"] for message in messages]
    parts = {(message["role"], key) for message in messages for key, value in message.items() if value is not None}
    return frozenset(zip(["", *roles], roles, strict=False)), frozenset(parts), bool(conversation.get("tools"))
