"""Frames of the line between a node and what runs below the dotted line. Sans-io: bytes in, frames out.

    frame = u32 LE length of what follows | u8 kind | payload

| kind | payload | direction |
| --- | --- | --- |
| 0 CONTROL | one JSON object, UTF-8 | both |
| 1 CHANNEL | bytes of the guest's channel, at most what the receiver's window allows | both |
| 2 CHANNEL_UP | empty: the guest dialled; a new handshake follows. The node echoes it | both |
| 3 CHANNEL_DOWN | empty: the guest's connection ended. From a node: end it, so that the guest dials again | both |
| 4 WINDOW | u32 LE: the sender of this frame takes that many more channel bytes | both |

A window begins at ``WINDOW`` bytes with each CHANNEL_UP and shrinks with each CHANNEL byte sent. So control messages
never wait behind a channel whose reader is slow or whose VM is paused. Until a node has echoed a CHANNEL_UP, what it
sends belongs to the connection before, and the keeper drops it.

Both sides of the line import this module: nothing here may be slow to import.
"""

from __future__ import annotations

import json
import struct

from perdure.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

VERSION = 1
CONTROL, CHANNEL, CHANNEL_UP, CHANNEL_DOWN, WINDOW_MORE = range(5)
FRAME_MAX = 4 << 20  # bytes of kind and payload
CHUNK = 64 << 10  # the most channel bytes in one frame that we send
WINDOW = 256 << 10
WINDOW_STEP = WINDOW // 4  # taken bytes are told in steps: a frame for each piece would wake the other side for nothing

_HEADER = struct.Struct("<IB")
_U32 = struct.Struct("<I")


def encode(kind: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEADER.pack(len(payload) + 1, kind) + payload


def encode_control(message: dict[str, Any]) -> bytes:
    """One control message as a frame. Raises ProtocolError when it is larger than a frame may be."""
    payload = json.dumps(message, separators=(",", ":")).encode()
    if len(payload) >= FRAME_MAX:
        raise ProtocolError(f"a control message of {len(payload)} bytes is larger than a frame ({FRAME_MAX} bytes)")
    return encode(CONTROL, payload)


def encode_window(size_bytes: int) -> bytes:
    return encode(WINDOW_MORE, _U32.pack(size_bytes))


def encode_channel(data: bytes) -> bytes:
    """Channel bytes as frames of at most ``CHUNK`` each."""
    if len(data) <= CHUNK:
        return encode(CHANNEL, data) if data else b""
    return b"".join(encode(CHANNEL, data[at : at + CHUNK]) for at in range(0, len(data), CHUNK))


def decode_control(payload: bytes) -> dict[str, Any]:
    """The object in a CONTROL frame. Raises ProtocolError."""
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a control message on the line is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise ProtocolError("a control message on the line is not a JSON object")
    return message


def decode_window(payload: bytes) -> int:
    """The number in a WINDOW frame. Raises ProtocolError."""
    if len(payload) != _U32.size:
        raise ProtocolError(f"a window frame on the line has {len(payload)} bytes of payload instead of {_U32.size}")
    return int(_U32.unpack(payload)[0])


class Decoder:
    """Cuts a stream of bytes into frames. One per connection."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def __len__(self) -> int:
        """Bytes that were fed and are not yet part of a whole frame."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The frames that are whole now: (kind, payload). Raises ProtocolError: the connection is of no more use."""
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= _HEADER.size:
                length, kind = _HEADER.unpack_from(buffer, at)
                if not 1 <= length <= FRAME_MAX:
                    raise ProtocolError(f"a frame on the line has length {length}, allowed is 1 to {FRAME_MAX}")
                if kind > WINDOW_MORE:
                    raise ProtocolError(f"a frame on the line has the unknown kind {kind}")
                end = at + _U32.size + length
                if end > len(buffer):
                    break
                payload = bytes(buffer[at + _HEADER.size : end])
                at = end
                yield kind, payload
        finally:
            del buffer[:at]
