"""Files as streams of bytes, decompressed; a file that ends early is an error, not a shorter file."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from sft.config.errors import UserError
from sft.data.readers.paths import File

MOST_GROWTH = 500
SMALLEST_BOMB = 16 << 20  # bytes; what stays below is harmless
_ZSTD_PIECE = 1 << 12  # bytes; they may expand by a factor of thirty thousand


def open_bytes(file: File) -> IO[bytes]:
    """The file's bytes, decompressed by its suffix."""
    if file.compression == ".gz":
        return io.BufferedReader(_Bounded(gzip.open(file.path, "rb"), file), 1 << 20)
    if file.compression == ".zst":
        return io.BufferedReader(_Bounded(_ZstdFile(open(file.path, "rb"), file.label), file), 1 << 20)
    return open(file.path, "rb", buffering=1 << 20)


@contextmanager
def file_errors(file: File) -> Iterator[None]:
    """Turn errors of the system and the decompressors into a UserError with the file's name."""
    try:
        yield
    except EOFError as error:
        raise UserError("the file ends early, as after a broken download", where=str(file.path)) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"cannot be decompressed: {error}", where=str(file.path)) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=str(file.path)) from error


class _Bounded(io.RawIOBase):
    """A decompressed stream that is stopped where it grows more than text can.

    A few kilobytes of a "bomb" expand to gigabytes of zeros; text that people write compresses to a third, generated
    text to a fiftieth.
    """

    def __init__(self, stream: Any, file: File) -> None:
        self._stream, self._file, self._count = stream, file, 0
        self._most = max(SMALLEST_BOMB, MOST_GROWTH * file.path.stat().st_size)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As the stream's own.

        Raises:
            UserError: it grows more than text can.
        """
        count = self._stream.readinto(buffer)
        self._count += count
        if self._count > self._most:
            raise UserError(
                f"grows to more than {MOST_GROWTH} times its size when it is decompressed, as no rows of text do",
                where=str(self._file.path),
                remedy="if that is intended, decompress it yourself",
            )
        return count

    def close(self) -> None:
        """Close both."""
        self._stream.close()
        super().close()


class _ZstdFile(io.RawIOBase):
    """Zstandard frames as a stream. The library's own reader accepts a truncated file as complete."""

    def __init__(self, raw: IO[bytes], label: str) -> None:
        try:
            import zstandard
        except ImportError:
            raw.close()
            raise UserError(".zst needs the package zstandard", where=label, remedy="pip install zstandard") from None
        self._raw, self._library = raw, zstandard
        self._frame: Any = None
        self._fed = b""
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._advance():
                return 0
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()

    def _advance(self) -> bool:
        """Decompress one more piece; false at the end of the file, EOFError in the midst of a frame."""
        data = self._fed or self._raw.read(_ZSTD_PIECE)
        self._fed = b""
        if not data:
            if self._frame is not None:
                raise EOFError
            return False
        if self._frame is None:
            self._frame = self._library.ZstdDecompressor().decompressobj()
        try:
            self._ready = self._frame.decompress(data)
        except self._library.ZstdError as error:
            raise OSError(f"zstd: {error}") from error
        if self._frame.eof:
            self._fed, self._frame = self._frame.unused_data, None
        return True
