"""Rows of any accepted format to conversations: {"messages": [...], "tools": [...]}, or {"text": ...} trained whole."""

from __future__ import annotations

from sft.data.formats.converter import Converter, format_named, formats_of, recognise, rename_columns
from sft.data.formats.errors import RowError
from sft.data.formats.table import ALIASES, FORMATS, Conversation, Format

__all__ = [
    "ALIASES",
    "FORMATS",
    "Conversation",
    "Converter",
    "Format",
    "RowError",
    "format_named",
    "formats_of",
    "recognise",
    "rename_columns",
]
