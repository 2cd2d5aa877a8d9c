"""Server-sent events as bytes: where one ends in a body that is still coming, and what it says. Pure.

The format is the one of the HTML standard, "Server-sent events": fields on lines that end with CR LF, LF or CR, an
event ends with an empty line, several lines of ``data`` are one text, a line that begins with a colon is a comment.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_LINE_END = re.compile(rb"\r\n|\n|\r")
_MARK = b"\xef\xbb\xbf"  # of the byte order: it may stand once, at the beginning of a stream


class Event(NamedTuple):
    """``name`` is "" where the stream names none; ``data`` is b"" of a comment, or of a name alone."""

    name: str
    data: bytes


class Cutter:
    """Finds the ends of events in a body that comes in pieces, however it is cut."""

    def __init__(self) -> None:
        self._is_in_line = False  # the line that goes on in the next piece has something on it already
        self._after_cr = False

    def ends(self, piece: bytes) -> list[int]:
        """The offsets in ``piece`` right behind each event that is whole now."""
        start = line = 1 if self._after_cr and piece.startswith(b"\n") else 0
        found = []
        for end in _LINE_END.finditer(piece, start):
            if end.start() == line and not self._is_in_line:
                found.append(end.end())
            line, self._is_in_line = end.end(), False
        if piece:
            self._is_in_line = self._is_in_line or line < len(piece)
            self._after_cr = piece.endswith(b"\r")
        return found


def read(raw: bytes) -> Event:
    """The bytes of one event, up to and including its empty line, as what they say. Other fields are left out."""
    name, data = b"", []
    for line in _LINE_END.split(raw.removeprefix(_MARK)):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return Event(name.decode(errors="replace"), b"\n".join(data))


def event(data: bytes, name: str = "") -> bytes:
    """The bytes of an event. ``data`` has no line breaks, as JSON has none."""
    return (b"event: " + name.encode() + b"\n" if name else b"") + b"data: " + data + b"\n\n"
