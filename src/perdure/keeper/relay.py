"""Connections from outside to a port of the guest: their bytes are moved by the kernel (splice(2)), both ways.

    node -- connection -- keeper -- TCP or UDP -- guest

The node is first told ``{"ok": {}}`` or the error, as one frame of the line; what follows are the bytes of the
connection. Each direction ends by itself, as TCP has it. A datagram has its length before it: u16, big endian.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from perdure.errors import InvalidValue, Unavailable
from perdure.execution.machine import configuration
from perdure.keeper import line
from perdure.keeper.loop import READ, WRITE, Loop, Stream, harmless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CONNECT_TIMEOUT_S = 10.0
_CHUNK = 1 << 20
_DATAGRAM_MAX = 65535
_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: closed by a reset
_SILENT_S = 120.0  # nothing came from either side: nobody says when datagrams are over


class Relays:
    """All of one keeper."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._relays: set[_Relay] = set()

    def __len__(self) -> int:
        return len(self._relays)

    def open(self, fd: int, wish: dict[str, Any]) -> None:
        """Connect who is at ``fd`` with the port. Takes the descriptor."""
        protocol = wish.get("protocol")
        kind = _Datagrams if protocol == "udp" else _Bytes
        try:
            if protocol not in ("tcp", "udp"):
                raise InvalidValue(f"ports are of tcp or udp, not of {protocol!r}")
            port = configuration.whole(wish, "port", 1, 65535)
        except InvalidValue as error:
            stream = Stream(self._loop, fd, lambda _data: None, lambda: None)
            stream.write(line.encode_control({"error": error.to_json()}))
            stream.finish()
            return
        try:
            self._relays.add(kind(self._loop, fd, port, self._relays.discard))
        except OSError:  # no descriptor is left for one more
            os.close(fd)

    def close(self) -> None:
        """End all at once: the guest is gone, and sockets that wait for it would hold its network for minutes."""
        for relay in list(self._relays):
            relay.inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            relay.close()


class _Relay:
    kind = socket.SOCK_STREAM

    def __init__(self, loop: Loop, fd: int, port: int, over: Callable[[_Relay], None]) -> None:
        self.loop, self.port, self._over = loop, port, over
        self.outer = fd
        os.set_blocking(fd, False)
        self.inner = socket.socket(socket.AF_INET, self.kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._deadline = loop.after(CONNECT_TIMEOUT_S, lambda: self._connected(errno.ETIMEDOUT))
        self._waits = True
        code = self.inner.connect_ex((configuration.GUEST_ADDRESS, port))
        if code == errno.EINPROGRESS:
            loop.watch(self.inner.fileno(), WRITE, harmless(lambda _mask: self._connected()))
        else:
            loop.after(0, lambda: self._connected(code))  # who made this one first puts it where it is kept

    def _connected(self, code: int | None = None) -> None:
        if not self._waits:
            return
        self._waits = False
        self.loop.cancel(self._deadline)
        if code is None:
            code = self.inner.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        said: dict[str, Any] = {"ok": {}}
        if code:
            reason = os.strerror(code)
            said = {"error": Unavailable(f"port {self.port} of the sandbox: {reason}", errno=code).to_json()}
        try:
            os.write(self.outer, line.encode_control(said))  # a few bytes, the first of this connection
        except OSError:
            code = code or errno.EPIPE
        try:
            if not code:
                self.begin()
                return
        except OSError:
            pass  # no descriptor is left for its pipes
        self.close()

    def begin(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        if self.outer < 0:
            return
        self._waits = False
        self.loop.cancel(self._deadline)
        self.loop.forget(self.inner.fileno())
        self.loop.forget(self.outer)
        self.inner.close()
        os.close(self.outer)
        self.outer = -1
        self._over(self)


class _Way:
    """One direction of a connection: what is in its pipe was read and is not yet written."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        self.reading, self.writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # of 64 KiB
        self.held = 0
        self.ended = False  # the source said its last
        self.over = False  # and the target was told

    def pump(self) -> None:
        """Move what can be moved. Raises OSError when an end is gone."""
        if not self.held and not self.ended:
            try:
                self.held = os.splice(self.source, self.writing, _CHUNK, flags=os.SPLICE_F_NONBLOCK)
                self.ended = self.held == 0
            except BlockingIOError:
                pass
        while self.held:
            try:
                self.held -= os.splice(self.reading, self.target, self.held, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                return
        if self.ended and not self.over:
            self.over = True
            with socket.socket(fileno=os.dup(self.target)) as target:
                target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        os.close(self.reading)
        os.close(self.writing)


class _Bytes(_Relay):
    _ways: tuple[_Way, ...] = ()

    def begin(self) -> None:
        inner = self.inner.fileno()
        self.inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there = _Way(self.outer, inner)
        self._ways = (there,)  # so that it is closed where there is no descriptor for the other
        self._ways = (there, _Way(inner, self.outer))
        self._move(0)

    def _move(self, _mask: int) -> None:
        try:
            for way in self._ways:
                way.pump()
        except OSError:
            self.close()
            return
        if all(way.over for way in self._ways):
            self.close()
            return
        for out, back in (self._ways, self._ways[::-1]):
            mask = (0 if out.held or out.ended else READ) | (WRITE if back.held else 0)
            self.loop.watch(out.source, mask, harmless(self._move))

    def close(self) -> None:
        super().close()
        ways, self._ways = self._ways, ()
        for way in ways:
            way.close()


class _Datagrams(_Relay):
    kind = socket.SOCK_DGRAM
    _stream: Stream | None = None
    _timer = 0

    def begin(self) -> None:
        self._buffer = bytearray()
        self._stream = Stream(self.loop, os.dup(self.outer), self._from_outside, self.close)
        self.loop.watch(self.inner.fileno(), READ, harmless(self._from_guest))
        self._still_here()

    def _still_here(self) -> None:
        self.loop.cancel(self._timer)
        self._timer = self.loop.after(_SILENT_S, self.close)

    def _from_outside(self, data: bytes) -> None:
        self._still_here()
        self._buffer += data
        while len(self._buffer) >= 2:
            end = 2 + int.from_bytes(self._buffer[:2], "big")
            if len(self._buffer) < end:
                return
            try:
                self.inner.send(self._buffer[2:end])
            except OSError:
                pass  # datagrams may be lost
            del self._buffer[:end]

    def _from_guest(self, _mask: int) -> None:
        self._still_here()
        try:
            data = self.inner.recv(_DATAGRAM_MAX)
        except OSError:
            return  # such as "port unreachable": the next one may find it
        assert self._stream is not None
        if self._stream.queued < _CHUNK:
            self._stream.write(len(data).to_bytes(2, "big") + data)

    def close(self) -> None:
        self.loop.cancel(self._timer)
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        super().close()
