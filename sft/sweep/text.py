"""Values in tables: short, on one line, and escaped for their table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sft.config.text import one_line

# Special characters of Markdown and HTML as entities: a backslash before a pipe would itself need escaping.
_MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "\\": "&#92;", "`": "&#96;", "*": "&#42;"}
)


def plain(value: Any) -> str:
    """A value as a command line or a CSV file has it; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple | Mapping):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def as_text(cell: str) -> str:
    """A CSV cell that a spreadsheet does not run as a formula: a leading formula character is quoted."""
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") and not _is_number(cell) and cell != "-" else cell


def short(value: Any, most: int = 60) -> str:
    """A short form of a value: numbers to five digits, also the long ones of a search."""
    if isinstance(value, float):
        return f"{value:.5g}"
    text = one_line(plain(value), most)
    if len(text) > 8:
        try:
            return f"{float(text):.5g}" if "_" not in text and "." in text else text
        except ValueError:
            return text
    return text


def markdown_cell(text: str) -> str:
    """Text that stands in a Markdown table as it is."""
    return one_line(text).translate(_MARKDOWN).replace("](", "]&#40;")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; numbers aligned to the right."""
    right = [_figures([row[i] for row in rows]) for i in range(len(header))]
    lines = [header, ["---:" if figures else "---" for figures in right]]
    table = [[markdown_cell(cell) for cell in line] for line in [header, *rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [table[0], lines[1], *table[1:]])


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to stdout: as wide as the terminal is, and as wide as it needs to be in a file or a pipe."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=100_000)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(header):
        figures = _figures([row[index] for row in rows])
        table.add_column(Text(one_line(name)), justify="right" if figures else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    with console.capture() as printed:
        console.print(table)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key by its last part, or in full where several have the same ending."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def _figures(cells: Sequence[str]) -> bool:
    """Whether a column holds numbers and gaps alone."""
    filled = [cell for cell in cells if cell not in ("", "-")]
    return bool(filled) and all(_is_number(cell.rstrip("%")) for cell in filled)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
