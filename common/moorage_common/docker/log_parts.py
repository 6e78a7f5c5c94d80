"""Parser of the Engine's log stream of a container: complete lines with their times, for any chunking."""

import codecs
import re
from collections.abc import Iterator
from typing import Protocol

from moorage_common.untrusted import LIMITS, clean_text

_HEADER = 8
_STDERR = 2
_ENTRY = 16 * 1024
"""The Engine's buffer: a longer line comes in several entries, each of that many bytes and with a time."""
_TIME = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)) ")
_TIME_BYTES = len("2026-01-01T00:00:00.000000000+00:00 ")
_MARK = f" [cut here: the line is longer than {LIMITS.log_text >> 10} KiB]"
_MOST = LIMITS.log_text - len(_MARK)


class Parts:
    """Parses a stream, in time linear in the bytes, and in the memory of two lines.

    Without a TTY each entry has a header of 8 bytes (the first is the stream, the last four are the length); with a TTY
    entries are plain lines.
    """

    def __init__(self, *, tty: bool) -> None:
        self._entries: _Entries = _Terminal() if tty else _Frames()
        self._lines = {False: _Line(), True: _Line()}
        """The current line of both streams; True is standard error's."""
        self.entries = 0
        """The number of complete entries of the Engine."""

    def take(self, data: bytes) -> Iterator[tuple[str, str]]:
        """Yield time and text of each complete line; of a very long one the beginning, with a mark."""
        for is_error, part, ended in self._entries.take(data):
            self.entries += ended
            if self._lines[is_error].add(part, ended=ended):
                yield self._lines[is_error].take()

    def rest(self) -> Iterator[tuple[str, str]]:
        """Yield the unterminated lines; call it at the end of the stream."""
        for is_error, part, ended in self._entries.rest():
            self.entries += ended
            self._lines[is_error].add(part, ended=ended)
        for line in self._lines.values():
            if line.begun:
                yield line.take()


class _Entries(Protocol):
    def take(self, data: bytes) -> Iterator[tuple[bool, bytes, bool]]:
        """Yield parts of entries: whether on standard error, the bytes, and whether the entry ends with them."""

    def rest(self) -> Iterator[tuple[bool, bytes, bool]]:
        """Yield the bytes that were buffered when the stream ended."""


class _Frames:
    """Entries with headers."""

    def __init__(self) -> None:
        self._header = b""
        self._left = 0
        """Remaining bytes of the current entry."""

    def take(self, data: bytes) -> Iterator[tuple[bool, bytes, bool]]:
        position = 0
        while position < len(data):
            if len(self._header) < _HEADER:
                taken = data[position : position + _HEADER - len(self._header)]
                self._header += taken
                position += len(taken)
                if len(self._header) < _HEADER:
                    return
                self._left = int.from_bytes(self._header[4:])
            part = data[position : position + self._left]
            position += len(part)
            self._left -= len(part)
            is_error = self._header[0] == _STDERR
            if not self._left:
                self._header = b""
            yield is_error, part, not self._left

    def rest(self) -> Iterator[tuple[bool, bytes, bool]]:
        yield from ()


class _Terminal:
    """Entries of a TTY, without separators: a line, or as much of one as the Engine's buffer holds."""

    def __init__(self) -> None:
        self._head: bytearray | None = bytearray()
        """The beginning of an entry, until it is known whether a time is there."""
        self._left = 0

    def take(self, data: bytes) -> Iterator[tuple[bool, bytes, bool]]:
        position = 0
        while position < len(data):
            room = self._left if self._head is None else _TIME_BYTES - len(self._head)
            part = data[position : position + room]
            part = part[: part.find(b"\n") + 1 or len(part)]
            position += len(part)
            ended = part.endswith(b"\n")
            if self._head is None:
                self._left -= len(part)
            else:
                self._head += part
                if not ended and len(self._head) < _TIME_BYTES:
                    return
                part = bytes(self._head)
                found = _TIME.match(part)
                self._left = _ENTRY - len(part) + (found.end() if found else 0)
            self._head = bytearray() if ended or not self._left else None
            yield False, part, self._head is not None

    def rest(self) -> Iterator[tuple[bool, bytes, bool]]:
        if self._head:
            yield False, bytes(self._head), True


class _Line:
    """The current line, of one entry or several."""

    def __init__(self) -> None:
        self._time: str | None = None
        self._head: bytearray | None = bytearray()
        """The beginning of an entry, until it is known whether a time is there."""
        self._size = 0
        """Bytes of the current entry, without its time."""
        self._bytes = bytearray()
        self._is_cut = False
        self._returned = False
        """The last byte was a carriage return: the next bytes overwrite the line."""

    @property
    def begun(self) -> bool:
        """Whether any of it has been received."""
        return self._time is not None or bool(self._head)

    def add(self, part: bytes, *, ended: bool) -> bool:
        """Add a part of an entry; return whether the line is complete."""
        if self._head is not None:
            self._head += part
            if len(self._head) < _TIME_BYTES and not ended:
                return False
            part, self._head = bytes(self._head), None
            found = _TIME.match(part)
            if self._time is None:
                self._time = found[1].decode() if found else ""
            part = part[found.end() :] if found else part
        self._size += len(part)
        whole = ended and part.endswith(b"\n")
        self._write(part[:-1] if whole else part)
        if not ended:
            return False
        size, self._size, self._head = self._size, 0, bytearray()
        # A shorter entry without a line break is the last one of its process.
        return whole or size < _ENTRY

    def _write(self, part: bytes) -> None:
        """Keep the final state that a terminal would show, up to the limit."""
        first, *others = part.split(b"\r")
        if first:
            if self._returned:
                self._clear()
            self._append(first)
        if others:
            last = next((state for state in reversed(others) if state), None)
            if last is not None:
                self._clear()
                self._append(last)
            self._returned = not others[-1]
        elif first:
            self._returned = False

    def _clear(self) -> None:
        self._bytes.clear()
        self._is_cut = False

    def _append(self, part: bytes) -> None:
        room = _MOST - len(self._bytes)
        self._bytes += part[:room]
        self._is_cut = self._is_cut or len(part) > room

    def take(self) -> tuple[str, str]:
        """Return time and text, and reset."""
        if self._head:
            self.add(b"", ended=True)
        # Decoded across entries: in a cut line the last character may be incomplete.
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(bytes(self._bytes), final=not self._is_cut)
        line = self._time or "", clean_text(text + (_MARK if self._is_cut else ""), LIMITS.log_text)
        self._time, self._returned = None, False
        self._clear()
        return line
