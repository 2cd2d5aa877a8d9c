"""One process in a guest, as the host sees it: its streams by offset, its end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from perdure.errors import Conflict, PerdureError, ProtocolError
from perdure.formats import channel

STDOUT, STDERR = 1, 2


class Owner(Protocol):
    """What a process needs of its session."""

    def send(self, frame: channel.Frame) -> None:
        """Dropped while there is no connection: the next one begins with what is missing."""

    async def request(self, build: Callable[[int], channel.Frame]) -> channel.Reply:
        """Ask until it is answered; raises the error that the answer is."""

    def released(self, process: Process) -> None: ...


class Process:
    """One process. Its output is kept in the guest until it is acknowledged, 256 KiB per stream at most.

    Offsets count the bytes of a stream since the process began; they outlive connections, suspends and the node.
    With a terminal all output is on stream 1.
    """

    def __init__(self, number: int, *, tty: bool, owner: Owner, window_bytes: int = channel.WINDOW_BYTES) -> None:
        """``window_bytes``: what of its input waits on this side at most."""
        self.number = number
        self.tty = tty
        self.pid = 0
        self.exit_status: int | None = None
        self.released = False
        self._owner = owner
        self._error: PerdureError | None = None
        self._changed = asyncio.Event()
        self._chunks: deque[tuple[int, int, bytes]] = deque()
        self._received = {STDOUT: 0, STDERR: 0}
        self._acknowledged = {STDOUT: 0, STDERR: 0}
        self._produced = {STDOUT: 0, STDERR: 0}  # as the guest said when this connection began
        self._ended: set[int] = set()
        self._window_bytes = window_bytes
        self._stdin = bytearray()  # [_stdin_base, _stdin_base + len): the guest has not said that it keeps them
        self._stdin_base = 0
        self._stdin_sent = 0
        self._stdin_limit = channel.WINDOW_BYTES
        self._stdin_closed = False
        self._size: tuple[int, int] | None = None

    @property
    def id(self) -> str:
        """12 hex digits."""
        return f"{self.number:012x}"

    # Output ---------------------------------------------------------------------------------------------------------

    async def output(self) -> AsyncIterator[tuple[int, int, bytes]]:
        """(stream 1 or 2, offset of the first byte, bytes), each byte once, until both streams ended.

        ``ack`` what is handled for good: with 256 KiB not acknowledged the process waits. One reader at a time.
        Raises the session's error when the machine is gone.
        """
        while True:
            while self._chunks:
                yield self._chunks.popleft()
            if len(self._ended) == 2:
                return
            await self._change()

    def received(self, stream: int) -> int:
        """Bytes of the stream that have come to this side (also those that ``output`` has not given out yet)."""
        return self._received[stream]

    def acknowledged(self, stream: int) -> int:
        return self._acknowledged[stream]

    def ack(self, stream: int, offset: int) -> None:
        """All bytes below ``offset`` are handled for good: the guest forgets them."""
        if offset > self._acknowledged[stream]:
            self._acknowledged[stream] = offset
            self._owner.send(channel.OutputAck(self.number, stream, offset))

    def skip_to(self, stream: int, offset: int) -> int:
        """After adoption: this side has the bytes below ``offset`` already (a log file's size). They are acknowledged
        and not given out.

        Returns where the output will go on: below ``offset`` if a restore took the guest back to a time before it had
        written those bytes; what the log file has beyond it did not happen.
        """
        offset = min(offset, max(self._produced[stream], self._received[stream]))
        kept = deque[tuple[int, int, bytes]]()
        for number, at, data in self._chunks:
            if number != stream or at >= offset:
                kept.append((number, at, data))
            elif at + len(data) > offset:
                kept.append((number, offset, data[offset - at :]))
        self._chunks = kept
        self._received[stream] = max(self._received[stream], offset)
        self.ack(stream, offset)
        return max(offset, self._acknowledged[stream])

    # Input ----------------------------------------------------------------------------------------------------------

    async def write_stdin(self, data: bytes) -> None:
        """Each byte arrives once, over any number of connections. Returns when at most a window waits on this side.

        What a process that has exited would have read is dropped. Raises Conflict after ``close_stdin``.
        """
        if self._stdin_closed:
            raise Conflict(f"stdin of process {self.id} is closed")
        for at in range(0, len(data), channel.CHUNK_BYTES):
            while len(self._stdin) >= self._window_bytes and self.exit_status is None:
                await self._change()
            if self.exit_status is not None:
                return
            self._stdin += data[at : at + channel.CHUNK_BYTES]
            self._pump_stdin()

    def close_stdin(self) -> None:
        """End of input, after what was written. A terminal gets its end-of-file character."""
        if not self._stdin_closed:
            self._stdin_closed = True
            self._pump_stdin()

    def _pump_stdin(self) -> None:
        end = self._stdin_base + len(self._stdin)
        while self._stdin_sent < min(end, self._stdin_limit):
            at = self._stdin_sent - self._stdin_base
            with memoryview(self._stdin) as waiting:  # a slice of the bytearray would be one more copy
                chunk = bytes(waiting[at : at + min(channel.CHUNK_BYTES, self._stdin_limit - self._stdin_sent)])
            self._owner.send(channel.Stdin(self.number, self._stdin_sent, chunk))
            self._stdin_sent += len(chunk)
        if self._stdin_closed and self._stdin_sent == end:
            self._owner.send(channel.StdinEnd(self.number, end))

    # Life -----------------------------------------------------------------------------------------------------------

    def resize(self, rows: int, columns: int) -> None:
        """The terminal's new size; the newest one counts, also after a reconnect."""
        self._size = (rows, columns)
        self._owner.send(channel.Resize(self.number, rows, columns))

    async def signal(self, signal: int, *, group: bool = False) -> None:
        """Send a signal, once, to the process or to its whole group. Raises Conflict if it has exited."""
        if self.exit_status is not None:
            raise Conflict(f"process {self.id} has exited")
        await self._owner.request(lambda request: channel.Signal(request, self.number, signal, int(group)))

    async def wait(self) -> int:
        """The exit status (128 + n for signal n). Output that was written before may still follow it."""
        while (status := self.exit_status) is None:
            await self._change()
        return status

    def release(self) -> None:
        """The guest may forget the process and what it keeps of its output. Raises Conflict while it runs."""
        if self.exit_status is None:
            raise Conflict(f"process {self.id} still runs", hint="wait for its end before releasing it")
        if not self.released:
            self.released = True
            self._owner.released(self)
            self._owner.send(channel.Release(self.number))

    async def _change(self) -> None:
        """Wait until the session tells something new. Raises the session's error."""
        if self._error is not None:
            raise self._error
        self._changed.clear()
        await self._changed.wait()

    # What the session tells -----------------------------------------------------------------------------------------

    def on_hello(self, hello: channel.GuestProcess, *, adopted: bool) -> None:
        """A new connection: the guest's memory is the truth, also when a restore has taken it back in time."""
        self.pid = hello.pid
        self.exit_status = hello.exit_status if hello.phase == channel.EXITED else None
        for stream, acknowledged, produced in (
            (STDOUT, hello.stdout_acknowledged, hello.stdout_produced),
            (STDERR, hello.stderr_acknowledged, hello.stderr_produced),
        ):
            self._produced[stream] = produced
            if adopted or self._received[stream] > produced:
                self._received[stream] = self._acknowledged[stream] = acknowledged
                self._chunks = deque(chunk for chunk in self._chunks if chunk[0] != stream)
                self._ended.discard(stream)
        # Bytes that the guest has are dropped here. Those it has lost again (a restore to before them) are gone with
        # the time that was taken back; what it never had follows what it has.
        known = hello.stdin_received - self._stdin_base
        if 0 <= known <= len(self._stdin):
            del self._stdin[:known]
        self._stdin_base = self._stdin_sent = hello.stdin_received
        self._stdin_limit = hello.stdin_limit
        self._changed.set()

    def on_absent(self) -> None:
        """A new connection to a guest that does not have this process yet: its start will be asked again."""
        self._stdin_sent = self._stdin_base = 0
        self._stdin_limit = channel.WINDOW_BYTES

    def on_welcomed(self) -> None:
        for stream, offset in self._acknowledged.items():
            if offset:
                self._owner.send(channel.OutputAck(self.number, stream, offset))
        if self._size is not None:
            self._owner.send(channel.Resize(self.number, *self._size))
        self._pump_stdin()

    def on_frame(self, frame: channel.Output | channel.OutputEnd | channel.StdinAck | channel.Exited) -> None:
        """Raises ProtocolError for a hole in a stream."""
        match frame:
            case channel.Output(stream=stream, offset=offset, data=data):
                self._on_output(stream, offset, data)
            case channel.OutputEnd(stream=stream):
                self._ended.add(stream)
            case channel.StdinAck(received=received, limit=limit):
                if not self._stdin_base <= received <= self._stdin_sent:
                    raise ProtocolError(f"guest: process {self.id} acknowledges input that it was not sent")
                del self._stdin[: received - self._stdin_base]
                self._stdin_base, self._stdin_limit = received, limit
                self._pump_stdin_rest()
            case channel.Exited(exit_status=exit_status):
                self.exit_status = exit_status
        self._changed.set()

    def _pump_stdin_rest(self) -> None:
        if self._stdin_sent < self._stdin_base + len(self._stdin):
            self._pump_stdin()

    def _on_output(self, stream: int, offset: int, data: bytes) -> None:
        if stream not in self._received or offset > self._received[stream]:
            raise ProtocolError(
                f"guest: output of process {self.id} has a hole on stream {stream} before byte {offset}"
            )
        fresh = data[self._received[stream] - offset :]
        if fresh:
            self._chunks.append((stream, self._received[stream], fresh))
            self._received[stream] += len(fresh)

    def on_lost(self, error: PerdureError) -> None:
        """Whatever waits raises ``error``, after the output that has come."""
        self._error = error
        self._changed.set()
