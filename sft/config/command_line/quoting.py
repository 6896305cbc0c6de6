"""Text in Hydra's quotes."""

from __future__ import annotations

import re


def quoted(value: str) -> str:
    """Text in Hydra's quotes: parsing it gives the same text, interpolations not followed."""
    from hydra.core.override_parser.types import Quote, QuotedString

    escaped = re.sub(r"(\\*)\$\{", lambda m: m.group(1) * 2 + r"\${", value)
    return QuotedString(text=escaped, quote=Quote.single).with_quotes()
