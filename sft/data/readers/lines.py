"""A file's lines, with a limit on their length."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import IO

from sft.config.errors import UserError

LONGEST_LINE = 64 << 20  # bytes; such a row would have millions of tokens
LARGEST_DOCUMENT = 1 << 30  # bytes of a JSON file that has to be read whole
_PIECE = 1 << 20
_ENDED = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


def size_text(size: int) -> str:
    """A size as text: 64 MiB."""
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size} bytes"


def lines_of(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Each line with its line break; None for one that is longer than LONGEST_LINE, which is skipped."""
    while line := stream.readline(LONGEST_LINE + 1):
        if len(line) <= LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(_PIECE)) and not rest.endswith(b"\n"):
            pass
        yield None


def read_whole(stream: IO[bytes], label: str, start: bytes = b"") -> bytes:
    """The rest of a stream. Raises UserError where it is larger than LARGEST_DOCUMENT."""
    data = io.BytesIO(start)
    data.seek(0, io.SEEK_END)
    while piece := stream.read(_PIECE):
        data.write(piece)
        if data.tell() > LARGEST_DOCUMENT:
            raise UserError(
                f"holds more than {size_text(LARGEST_DOCUMENT)} in one JSON value, which has to be read at once",
                where=label,
                remedy="save it as JSON lines, one row a line (.jsonl)",
            )
    return data.getvalue()


class TextLines:
    """A stream's lines as text, for `csv.reader`; bytes that are not UTF-8 become lone surrogates.

    Raises UserError, naming the line, for a line that is longer than LONGEST_LINE.
    """

    def __init__(self, stream: IO[bytes], label: str) -> None:
        self.lines, self.label, self.number = lines_of(stream), label, 0
        self.ready: list[str] = []

    def __iter__(self) -> TextLines:
        return self

    def __next__(self) -> str:
        if self.ready:
            return self.ready.pop()
        line = next(self.lines)
        self.number += 1
        if line is None:
            raise UserError(
                f"a line is longer than {size_text(LONGEST_LINE)}", where=f"{self.label} line {self.number}"
            )
        if self.number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        text = line.decode("utf-8", "surrogateescape")
        # a lone CR ends lines too, where a file has no other line breaks
        if "\r" in text.removesuffix("\n").removesuffix("\r"):
            self.ready = _ENDED.findall(text)[::-1]
            return self.ready.pop()
        return text
