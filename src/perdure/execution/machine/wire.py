"""One connection of the line, in asyncio: to the launcher, or to a keeper (docs/design/0001-contracts.md, 3)."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

from perdure.errors import PerdureError, ProtocolError, Unavailable, from_json
from perdure.keeper import line
from perdure.model import LauncherAddress

CONNECT_TIMEOUT_S = 10.0


class Closed(Unavailable):
    """The other end closed the connection before it answered."""


class Wire(asyncio.Protocol):
    """One connection of the line. Frames wait in a list until somebody receives them."""

    def __init__(self) -> None:
        self._decoder = line.Decoder()
        self._transport: asyncio.Transport | None = None
        self._frames: list[tuple[int, bytes]] = []
        self._arrived = asyncio.Event()
        self._lost = False
        self._reason: PerdureError | None = None
        self._on_frame: Callable[[int, bytes], None] | None = None
        self._on_lost: Callable[[PerdureError | None], None] | None = None
        self._process = -1

    @staticmethod
    async def open(address: LauncherAddress, hello: dict[str, Any], *, timeout_s: float = CONNECT_TIMEOUT_S) -> Wire:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                if address.unix_path:
                    _, wire = await loop.create_unix_connection(Wire, address.unix_path)
                else:
                    _, wire = await loop.create_connection(Wire, address.tcp_host, address.tcp_port)
        except (OSError, TimeoutError) as error:
            raise Unavailable(
                f"the launcher does not answer at {address}: {str(error) or 'timed out'}",
                hint="Start it with: fcrun host start",
            ) from None
        wire._end_with(address.process)
        wire.write(line.encode_control({"op": "hello", "version": line.VERSION, "token": address.token, **hello}))
        return wire

    async def answer(self, timeout_s: float) -> dict[str, Any]:
        """The answer to the hello. Raises what the other side answered, Unavailable."""
        try:
            async with asyncio.timeout(timeout_s):
                message = await self.control()
        except TimeoutError:
            raise Unavailable(
                f"the launcher did not answer within {timeout_s:g} s", hint="See: fcrun host status"
            ) from None
        return dict(message.get("ok") or {})

    async def control(self) -> dict[str, Any]:
        """The next control message. Raises what it carries if that is an error, Unavailable when there is none."""
        while not self._frames:
            if self._lost:
                raise self._reason or Closed(
                    "the launcher closed the connection", hint="See: fcrun host status, and the launcher's log"
                )
            self._arrived.clear()
            await self._arrived.wait()
        kind, payload = self._frames.pop(0)
        if kind != line.CONTROL:
            raise ProtocolError(f"expected a control message on the line, got a frame of kind {kind}")
        message = line.decode_control(payload)
        if "error" in message:
            raise from_json(message["error"])
        return message

    def receive(self, on_frame: Callable[[int, bytes], None], on_lost: Callable[[PerdureError | None], None]) -> None:
        """From now on give every frame to ``on_frame``, those that wait first."""
        self._on_frame, self._on_lost = on_frame, on_lost
        frames, self._frames = self._frames, []
        for kind, payload in frames:
            on_frame(kind, payload)
        if self._lost:
            on_lost(self._reason)

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._lost:
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _end_with(self, process: int) -> None:
        """Lose the connection when this process ends (0: none). An emulated host that is reached by a card of its own
        takes the card with it, and then nobody is left to say that the connection is over."""
        if not process:
            return
        try:
            self._process = os.pidfd_open(process)
        except OSError:  # it is gone already
            self._over()
            return
        asyncio.get_running_loop().add_reader(self._process, self._over)

    def _over(self) -> None:
        self._forget_process()
        if self._transport is not None:
            self._transport.abort()

    def _forget_process(self) -> None:
        if self._process >= 0:
            asyncio.get_running_loop().remove_reader(self._process)
            os.close(self._process)
            self._process = -1

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        made: socket.socket = transport.get_extra_info("socket")
        if made.family != socket.AF_UNIX:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        try:
            for kind, payload in self._decoder.feed(data):
                if self._on_frame is not None:
                    self._on_frame(kind, payload)
                else:
                    self._frames.append((kind, payload))
                    self._arrived.set()
        except ProtocolError as error:
            self._reason = error
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_process()
        self._lost = True
        self._arrived.set()
        if self._on_lost is not None:
            self._on_lost(self._reason)
