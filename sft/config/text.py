"""Text that came from elsewhere (rows, names, a model's answer) on its way to a terminal or a log."""

from __future__ import annotations

import unicodedata

# Marks that reorder text: what is shown could read as something else.
_REORDERING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def harmless(text: str) -> str:
    """Text for a terminal: without control characters, which could move the cursor, set the title or the clipboard."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        c for c in text if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _REORDERING)
    )
