"""The log of a sandbox's main process: records of what it wrote, on disk and on the wire of ``GET .../logs``.

    offset  size  field
    0       1     stream: 0 position, 1 stdout, 2 stderr
    1       3     reserved, zero
    4       4     length of the data, u32 little endian
    8       8     time of writing, u64 little endian, nanoseconds since the epoch
    16      n     data

A position record has two u64 (little endian) as its data: the process's output offsets (stdout, stderr) that the next
record begins at. It is written where they jump: at a start, and at a resume from an older snapshot. On the wire only
where it is asked for (``positions=1``): then also first.

A record that is not complete at the end of a file was being written when the writer died: it is cut off, and the
guest sends its bytes again (it drops only what was acknowledged).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from perdure.errors import ProtocolError

POSITION = 0
STDOUT = 1
STDERR = 2
DATA_MAX = 1 << 20  # a longer length means that the bytes are not records

_HEADER = struct.Struct("<B3xIQ")
_POSITION = struct.Struct("<QQ")
HEADER_BYTES = _HEADER.size


class LogRecord(NamedTuple):
    """What a process wrote at once. ``time`` in seconds since the epoch."""

    stream: int
    time: float
    data: bytes


def encode(stream: int, time_ns: int, data: bytes) -> bytes:
    """The records of ``data`` (more than one if it is longer than DATA_MAX)."""
    pieces = (data[at : at + DATA_MAX] for at in range(0, len(data), DATA_MAX))
    return b"".join(_HEADER.pack(stream, len(piece), time_ns) + piece for piece in pieces)


def encode_position(stdout: int, stderr: int, time_ns: int) -> bytes:
    """The position record for these output offsets."""
    return _HEADER.pack(POSITION, _POSITION.size, time_ns) + _POSITION.pack(stdout, stderr)


def decode_position(data: bytes) -> dict[int, int]:
    """{STDOUT: offset, STDERR: offset}. Raises ProtocolError."""
    if len(data) != _POSITION.size:
        raise ProtocolError(f"a position record of {len(data)} bytes")
    stdout, stderr = _POSITION.unpack(data)
    return {STDOUT: stdout, STDERR: stderr}


def header(data: bytes) -> tuple[int, int] | None:
    """(stream, length of the data) of a record's header; None: this is none, or not a whole one."""
    if len(data) < HEADER_BYTES:
        return None
    stream, length, _ = _HEADER.unpack_from(data)
    return (stream, length) if stream <= STDERR and length <= DATA_MAX else None


class Decoder:
    """Records from bytes that arrive in any pieces. ``pending`` bytes belong to a record that is not complete."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    @property
    def pending(self) -> int:
        return len(self._bytes)

    def feed(self, data: bytes) -> Iterator[LogRecord]:
        """The records that ``data`` completes. Raises ProtocolError for bytes that cannot be records."""
        self._bytes += data
        at = 0
        try:
            while len(self._bytes) - at >= HEADER_BYTES:
                stream, length, time_ns = _HEADER.unpack_from(self._bytes, at)
                if stream > STDERR or length > DATA_MAX:
                    raise ProtocolError(f"not a log record: stream {stream}, length {length}")
                end = at + HEADER_BYTES + length
                if len(self._bytes) < end:
                    break
                data = bytes(self._bytes[at + HEADER_BYTES : end])
                at = end
                yield LogRecord(stream, time_ns / 1e9, data)
        finally:
            del self._bytes[:at]
