"""Frames of the channel between the node and guestd: bytes <-> values, no I/O. Byte tables: docs/formats/channel.md.

    frame = u32 length of what follows | u8 type | payload         all numbers little endian

Texts are UTF-8; bytes of a guest that are not become surrogates (``surrogateescape``) and go back unchanged.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from perdure.errors import ProtocolError

VERSION = 1
MAX_FRAME_BYTES = 1 << 20  # of type and payload
CHUNK_BYTES = 128 << 10  # the most stream bytes that either side puts into one frame
WINDOW_BYTES = 256 << 10  # the most unacknowledged bytes of one stream
TOOL_WINDOW_BYTES = 512 << 10  # the same of a file tool, once its guest has said that it takes as many

_NUMBERS = {
    "u8": struct.Struct("<B"),
    "u16": struct.Struct("<H"),
    "u32": struct.Struct("<I"),
    "u64": struct.Struct("<Q"),
}
_LENGTH = _NUMBERS["u32"]

Headers = tuple[tuple[str, str], ...]


class Frame:
    """Base of all frames. ``layout`` is the payload, field by field, in the order of the dataclass."""

    type: ClassVar[int]
    layout: ClassVar[str]

    def encode(self) -> bytes:
        """The whole frame, with its length. Raises ValueError if it is too long or a number does not fit."""
        parts = [b"", bytes((self.type,))]
        for name, kind in _fields(type(self)):
            _put(parts, kind, getattr(self, name))
        size = sum(map(len, parts))
        if size > MAX_FRAME_BYTES:
            raise ValueError(f"a {type(self).__name__} frame of {size} bytes is over {MAX_FRAME_BYTES}")
        parts[0] = _LENGTH.pack(size)
        return b"".join(parts)


# From the guest -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello(Frame):
    """First on a connection; then a GuestProcess for each process, then Synced."""

    type = 0x01
    layout = "u16 u8 u8 bytes u64 u64 u32"
    version: int
    configured: int
    frozen: int
    boot_id: bytes
    connection: int
    auto_ordinal: int
    open_calls: int


@dataclass(frozen=True, slots=True)
class GuestProcess(Frame):
    """A process that the guest knows: ``phase`` is one of STARTING, RUNNING, EXITED."""

    type = 0x02
    layout = "u64 u8 u8 u32 u32 u64 u64 u64 u64 u8 u64 u64 u8"
    process: int
    phase: int
    tty: int
    pid: int
    exit_status: int
    stdin_received: int
    stdin_limit: int
    stdout_acknowledged: int
    stdout_produced: int
    stdout_ended: int
    stderr_acknowledged: int
    stderr_produced: int
    stderr_ended: int


@dataclass(frozen=True, slots=True)
class Synced(Frame):
    """The guest has said all that it knows; it sends nothing more before Welcome."""

    type = 0x03
    layout = ""


@dataclass(frozen=True, slots=True)
class Reply(Frame):
    """The outcome of a request: ``code`` is one of the ``REPLY_`` numbers, ``value`` belongs to the request."""

    type = 0x04
    layout = "u64 u16 u32 text"
    request: int
    code: int
    value: int
    message: str


@dataclass(frozen=True, slots=True)
class Output(Frame):
    type = 0x05
    layout = "u64 u8 u64 rest"
    process: int
    stream: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class OutputEnd(Frame):
    type = 0x06
    layout = "u64 u8 u64"
    process: int
    stream: int
    offset: int


@dataclass(frozen=True, slots=True)
class StdinAck(Frame):
    """The guest keeps all bytes below ``received``; the host may send those below ``limit``."""

    type = 0x07
    layout = "u64 u64 u64"
    process: int
    received: int
    limit: int


@dataclass(frozen=True, slots=True)
class Exited(Frame):
    type = 0x08
    layout = "u64 u32"
    process: int
    exit_status: int


@dataclass(frozen=True, slots=True)
class CallOpen(Frame):
    """A call of the guest; CallBody frames with ``body_bytes`` bytes follow."""

    type = 0x09
    layout = "u64 text u64 text text headers u64 u64"
    call: int
    lane: str
    ordinal: int
    method: str
    path: str
    headers: Headers
    body_bytes: int
    offset: int


@dataclass(frozen=True, slots=True)
class CallBody(Frame):
    type = 0x0A
    layout = "u64 u64 rest"
    call: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class CallAck(Frame):
    """The guest's program took the answer's body up to ``offset``: the host may send WINDOW_BYTES beyond it."""

    type = 0x0B
    layout = "u64 u64"
    call: int
    offset: int


@dataclass(frozen=True, slots=True)
class CallCancel(Frame):
    type = 0x0C
    layout = "u64"
    call: int


# From the host ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcome(Frame):
    type = 0x41
    layout = "u16"
    version: int


@dataclass(frozen=True, slots=True)
class Configure(Frame):
    """Wait for the drives, mount the image, take the host name."""

    type = 0x42
    layout = "u64 u32 text"
    request: int
    budget_ms: int
    hostname: str


@dataclass(frozen=True, slots=True)
class Exec(Frame):
    """Start a process (or, with EXEC_TOOL, one of guestd's own file tools, named by ``argv[0]``)."""

    type = 0x43
    layout = "u64 u64 u8 u16 u16 text text texts texts texts texts"
    request: int
    process: int
    flags: int
    rows: int
    columns: int
    user: str
    cwd: str
    argv: tuple[str, ...]
    env: tuple[str, ...]
    limits: tuple[str, ...] = ()  # "RESOURCE SOFT HARD", "capabilities MASK" or "no-new-privileges" each
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Signal(Frame):
    type = 0x44
    layout = "u64 u64 u32 u8"
    request: int
    process: int
    signal: int
    group: int


@dataclass(frozen=True, slots=True)
class Resize(Frame):
    type = 0x45
    layout = "u64 u16 u16"
    process: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Stdin(Frame):
    type = 0x46
    layout = "u64 u64 rest"
    process: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StdinEnd(Frame):
    type = 0x47
    layout = "u64 u64"
    process: int
    offset: int


@dataclass(frozen=True, slots=True)
class OutputAck(Frame):
    type = 0x48
    layout = "u64 u8 u64"
    process: int
    stream: int
    offset: int


@dataclass(frozen=True, slots=True)
class Release(Frame):
    """Forget the process: it has exited, and whatever it wrote was handled."""

    type = 0x49
    layout = "u64"
    process: int


@dataclass(frozen=True, slots=True)
class Quiesce(Frame):
    type = 0x4A
    layout = "u64 u32"
    request: int
    budget_ms: int


@dataclass(frozen=True, slots=True)
class Thaw(Frame):
    type = 0x4B
    layout = "u64"
    request: int


@dataclass(frozen=True, slots=True)
class Wake(Frame):
    """Set the clock, mix in entropy, take the identity (empty: keep), then thaw."""

    type = 0x4C
    layout = "u64 u64 bytes text text"
    request: int
    realtime_ns: int
    entropy: bytes
    hostname: str
    machine_id: str


@dataclass(frozen=True, slots=True)
class PowerOff(Frame):
    type = 0x4D
    layout = "u64"
    request: int


@dataclass(frozen=True, slots=True)
class CallHead(Frame):
    type = 0x4E
    layout = "u64 u16 headers"
    call: int
    status: int
    headers: Headers


@dataclass(frozen=True, slots=True)
class CallData(Frame):
    type = 0x4F
    layout = "u64 u64 rest"
    call: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class CallEnd(Frame):
    type = 0x50
    layout = "u64 u64"
    call: int
    offset: int


@dataclass(frozen=True, slots=True)
class CallAbort(Frame):
    """There will be no end of this answer: the guest's program sees its connection break off."""

    type = 0x51
    layout = "u64"
    call: int


@dataclass(frozen=True, slots=True)
class Usage(Frame):
    """What does the workload use (``usagereport``)? A guest of before it ends the connection instead."""

    type = 0x52
    layout = "u64"
    request: int


STARTING, RUNNING, EXITED = 0, 1, 2
EXEC_TTY, EXEC_STDIN, EXEC_TOOL = 1, 2, 4
REPLY_OK, REPLY_INVALID, REPLY_CONFLICT, REPLY_FAILED = 0, 1, 2, 3
REPLY_NOT_EXECUTABLE, REPLY_NOT_FOUND = 126, 127
QUIESCED_FROZEN, QUIESCED_SYNCED, QUIESCED_DROPPED = 1, 2, 4

FRAMES: dict[int, type[Frame]] = {kind.type: kind for kind in Frame.__subclasses__()}


class FrameReader:
    """Cuts a byte stream into frames. After a ProtocolError the connection is of no more use."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that ``data`` completes. Raises ProtocolError at the first one that is malformed."""
        pending = self._pending
        pending += data
        at = 0
        try:
            while len(pending) - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(pending, at)
                if not 1 <= length <= MAX_FRAME_BYTES:
                    raise ProtocolError(
                        f"channel: a frame claims {length} bytes; 1 to {MAX_FRAME_BYTES} are allowed",
                        hint="the two ends are not of the same version, or the connection carries something else",
                    )
                end = at + _LENGTH.size + length
                if len(pending) < end:
                    break
                with memoryview(pending) as view:  # a slice of the bytearray would be one more copy
                    payload = bytes(view[at + _LENGTH.size : end])
                at = end
                yield decode(payload)
        finally:
            del pending[:at]

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that has not arrived whole: not 0 at the end of a connection means it was cut."""
        return len(self._pending)


def decode(payload: bytes) -> Frame:
    """The frame in ``payload`` (type byte first, no length). Raises ProtocolError."""
    kind = FRAMES.get(payload[0]) if payload else None
    if kind is None:
        raise ProtocolError(
            f"channel: unknown frame type {payload[:1].hex() or 'none'}",
            hint="guestd in the VM is of another version",
        )
    at, values = 1, []
    try:
        for _, field in _fields(kind):
            value, at = _get(payload, at, field)
            values.append(value)
    except (struct.error, IndexError) as error:
        raise ProtocolError(f"channel: a {kind.__name__} frame ends inside field {len(values) + 1}") from error
    if at != len(payload):
        raise ProtocolError(f"channel: a {kind.__name__} frame has {len(payload) - at} bytes too many")
    return kind(*values)


def _fields(kind: type[Frame]) -> Iterator[tuple[str, str]]:
    return zip(kind.__slots__, kind.layout.split(), strict=True)  # type: ignore[attr-defined]


def _put(parts: list[bytes], kind: str, value: Any) -> None:
    if number := _NUMBERS.get(kind):
        try:
            parts.append(number.pack(value))
        except struct.error as error:
            raise ValueError(f"{value} does not fit {kind}") from error
    elif kind == "rest":
        parts.append(value)
    elif kind == "bytes":
        parts += (_LENGTH.pack(len(value)), value)
    elif kind == "text":
        _put(parts, "bytes", value.encode("utf-8", "surrogateescape"))
    else:  # texts, headers
        parts.append(_LENGTH.pack(len(value)))
        for item in value:
            for text in (item,) if kind == "texts" else item:
                _put(parts, "text", text)


def _get(payload: bytes, at: int, kind: str) -> tuple[Any, int]:
    if number := _NUMBERS.get(kind):
        return number.unpack_from(payload, at)[0], at + number.size
    if kind == "rest":
        return payload[at:], len(payload)
    (count,) = _LENGTH.unpack_from(payload, at)
    at += _LENGTH.size
    if kind in ("bytes", "text"):
        if at + count > len(payload):
            raise IndexError
        data = payload[at : at + count]
        return data if kind == "bytes" else data.decode("utf-8", "surrogateescape"), at + count
    found: list[Any] = []
    for _ in range(count):  # each item takes 4 bytes or more, so a lying count ends at the payload's end
        first, at = _get(payload, at, "text")
        if kind == "headers":
            second, at = _get(payload, at, "text")
            found.append((first, second))
        else:
            found.append(first)
    return tuple(found), at
