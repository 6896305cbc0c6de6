"""Text that came from elsewhere (rows, names, a model's answer) on its way to a terminal, a log or a page."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Bidirectional control characters: what is shown could read as something else.
_REORDERING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def without_control_characters(text: str) -> str:
    """Text for a terminal: without control characters, which could move the cursor, set the title or the clipboard."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        c for c in text if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _REORDERING)
    )


def printable(text: str, instead: str = " ") -> str:
    """Text with invisible characters, including line breaks, replaced by visible ones."""
    return "".join(c if c.isprintable() else instead for c in text)


def shortened(text: str, most: int) -> str:
    """Text of at most `most` characters; the last of one that was cut is an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def one_line(text: str, most: int | None = None) -> str:
    """Text on one line without control characters, cut to `most` characters."""
    line = " ".join(printable(text).split())
    return line if most is None else shortened(line, most)


def fenced(text: str, language: str = "") -> str:
    """A code block of Markdown whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def byte_size(size: int, digits: int = 1, gib_from: int = 2**30) -> str:
    """Bytes in words: `1.5 GiB`, below `gib_from` in MiB."""
    return f"{size / 2**30:.{digits}f} GiB" if size >= gib_from else f"{size / 2**20:.{digits}f} MiB"


def did_you_mean(name: str, names: Iterable[str], otherwise: str, prefix: str = "", cutoff: float = 0.6) -> str:
    """`did you mean PREFIXNAME?` for the name that is most like this one, `otherwise` where none is like it.

    A config's keys have stricter rules (`sft.config.checks.suggest`): a wrong suggestion costs more there.

    Args:
        cutoff: how like it has to be, from 0 (anything) to 1 (the same).
    """
    near = closest_names(name, names, cutoff=cutoff)
    return f"did you mean {prefix}{near[0]}?" if near else otherwise


def closest_names(name: str, names: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """At most this many names similar to this one, the most similar first."""
    import difflib

    return difflib.get_close_matches(name, list(names), n=most, cutoff=cutoff)
