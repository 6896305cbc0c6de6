"""Refuse response and instruction templates that occur in no row before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sft.config.errors import UserError
from sft.data.labels.encoder import Encoder
from sft.data.labels.markers import first_found
from sft.template.control import revealed


def refuse_unmatched(encoder: Encoder, conversations: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a response or instruction template that is in none of some conversations.

    Raises:
        UserError: with the tokens that were looked for, and those that a row has.
    """
    markers = encoder.markers
    if markers is None:
        return
    rendered = [rows for rows in map(encoder.render, conversations) if not isinstance(rows, str)]
    texts = [row.text for rows in rendered for row in rows]
    encodings = encoder.tokenize(texts)
    for key, groups in (("response_template", markers.response), ("instruction_template", markers.instruction)):
        if not groups or not texts or any(first_found(encoding.ids, groups) for encoding in encodings):
            continue
        tokenizer, given = encoder.tokenizer, markers.given[key]
        sought = tokenizer.encode(given, add_special_tokens=False) if isinstance(given, str) else list(given or [])
        there = encodings[0].ids[:40]
        header = encoder.bound.response_marker if key == "response_template" else encoder.bound.instruction_marker
        written = [header] if header and any(header in text for text in texts) else []
        raise UserError(
            f"{key} {given!r} is in none of {len(texts):,} rows looked at\n"
            f"  looked for: {tokenizer.convert_ids_to_tokens(sought)}\n"
            f"  a row has: {tokenizer.convert_ids_to_tokens(there)}\n"
            f"  which is: {revealed(texts[0])[:200]!r}",
            where=f"dataset.{key}",
            remedy=f"dataset.{key}={written[0]!r}"
            if written
            else "copy it from the row's text, which python -m sft.preview shows",
        )
