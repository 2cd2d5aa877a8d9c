"""Published ports: the node listens on the host for as long as a sandbox runs or sleeps, and a connection wakes it.

The node carries the bytes itself, so it is the same with KVM and in the emulated host, and nothing has to be undone
when it dies. The next node listens again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from perdure.errors import Conflict, InvalidValue, NoRights, PerdureError
from perdure.execution.network.dialing import keep_alive
from perdure.model import PublishedPort

ANYWHERE = ("0.0.0.0", "::")  # where docker listens when no address is given
CONNECTIONS_MAX = 1024  # of one sandbox, at once
BACKLOG = 128
CHUNK_BYTES = 64 << 10
CLOSE_TIMEOUT_S = 30.0  # for a client to take what is left
DATAGRAM_CLIENTS_MAX = 256
DATAGRAM_QUEUE_MAX = 64
DATAGRAM_QUEUE_BYTES = 64 << 10  # of one client, while nobody has taken them
DATAGRAM_ANSWERS_BYTES = 1 << 20  # of one port, while the card is slower than the guest
SILENT_S = 120.0  # as the keeper's

_log = logging.getLogger(__name__)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Dial = Callable[[str, int], Awaitable[Streams]]  # (protocol, port): wakes the sandbox where that is needed


class Published:
    """The ports of one sandbox. ``dial`` connects with the guest; errors of it end one connection, not more. ``busy``
    is held for as long as a connection lasts."""

    def __init__(self, name: str, dial: Dial, busy: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._name, self._dial, self._busy = name, dial, busy
        self._servers: list[asyncio.Server] = []
        self._transports: list[asyncio.DatagramTransport] = []
        self.connections: set[asyncio.Task[None]] = set()

    async def open(self, ports: Sequence[PublishedPort]) -> list[PublishedPort]:
        """Listen; the ports with the host's numbers. All of them, or the error of the first that could not be had.

        Raises Conflict (it is in use), NoRights, InvalidValue (no such address here).
        """
        try:
            return [await self._open(port) for port in ports]
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Listen no more, and end all connections."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        transports, self._transports = self._transports, []
        for transport in transports:
            transport.abort()
        connections = list(self.connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _open(self, port: PublishedPort) -> PublishedPort:
        number = port.host_port
        for place, address in enumerate([port.host_ip] if port.host_ip else ANYWHERE):
            try:
                listening = _bound(address, number, port.protocol)
            except OSError as error:
                if place and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    continue  # a machine without IPv6
                raise _refusal(error, address, number) from None
            number = listening.getsockname()[1]
            if port.protocol == "udp":
                await self._serve_datagrams(listening, port.guest_port)
            else:
                await self._serve(listening, port.guest_port)
        return PublishedPort(guest_port=port.guest_port, host_port=number, host_ip=port.host_ip, protocol=port.protocol)

    # -- connections --------------------------------------------------------------------------------------------------
    async def _serve(self, listening: socket.socket, guest_port: int) -> None:
        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(self.connections) >= CONNECTIONS_MAX:
                _log.warning("%s has %d connections: another is refused", self._name, CONNECTIONS_MAX)
                writer.transport.abort()
                return
            self._keep(self._carry(guest_port, reader, writer))

        server = await asyncio.start_server(accepted, sock=listening, limit=CHUNK_BYTES, backlog=BACKLOG)
        self._servers.append(server)

    def _keep(self, work: Awaitable[None]) -> None:
        held = contextlib.ExitStack()
        held.enter_context(self._busy())
        task = asyncio.ensure_future(work)
        self.connections.add(task)

        def over(done: asyncio.Future[None]) -> None:  # also where it was cancelled before it began
            self.connections.discard(task)
            held.close()

        task.add_done_callback(over)

    async def _carry(self, guest_port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await self._dial("tcp", guest_port)
        except (PerdureError, OSError, TimeoutError) as error:
            _log.info("a connection to port %d of %s: %s", guest_port, self._name, error)
            writer.transport.abort()
            return
        except BaseException:
            writer.transport.abort()
            raise
        made: socket.socket = writer.get_extra_info("socket")
        keep_alive(made)  # a dead client is not use
        pumps = [asyncio.ensure_future(_pump(*ends)) for ends in ((reader, inner_writer), (inner_reader, writer))]
        try:
            await asyncio.gather(*pumps)
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                for end in (writer, inner_writer):
                    end.close()
                    await end.wait_closed()
        except (OSError, EOFError, TimeoutError):
            pass  # one side is gone, or takes nothing more: so is the connection
        finally:
            for pump in pumps:
                pump.cancel()
            for end in (writer, inner_writer):
                end.transport.abort()

    # -- datagrams ----------------------------------------------------------------------------------------------------
    async def _serve_datagrams(self, listening: socket.socket, guest_port: int) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(lambda client: self._keep(self._exchange(guest_port, client))), sock=listening
        )
        self._transports.append(transport)

    async def _exchange(self, guest_port: int, client: _Client) -> None:
        """Carry the datagrams of one client, until nothing has come for a while."""
        try:
            reader, writer = await self._dial("udp", guest_port)
        except (PerdureError, OSError, TimeoutError) as error:
            _log.info("a datagram to port %d of %s: %s", guest_port, self._name, error)
            client.forget()
            return

        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(SILENT_S) as silence:

                async def back() -> None:
                    while True:
                        size = int.from_bytes(await reader.readexactly(2), "big")
                        client.answer(await reader.readexactly(size))
                        silence.reschedule(loop.time() + SILENT_S)

                task = asyncio.create_task(back())
                try:
                    while not task.done():
                        data = await client.next()
                        writer.write(len(data).to_bytes(2, "big") + data)
                        await writer.drain()
                        silence.reschedule(loop.time() + SILENT_S)
                finally:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, OSError, EOFError):
                        await task
        except (OSError, EOFError, TimeoutError):
            pass
        finally:
            client.forget()
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


class _Client:
    """Somebody on the host who sends datagrams to one port."""

    def __init__(self, address: tuple[str, int], protocol: _Datagrams) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(DATAGRAM_QUEUE_MAX)
        self.held_bytes = 0
        self._address, self._protocol = address, protocol

    def came(self, data: bytes) -> None:
        """One from it. Datagrams may be lost: those that there is no room for are."""
        if self.held_bytes + len(data) <= DATAGRAM_QUEUE_BYTES and not self._queue.full():
            self.held_bytes += len(data)
            self._queue.put_nowait(data)

    async def next(self) -> bytes:
        data = await self._queue.get()
        self.held_bytes -= len(data)
        return data

    def answer(self, data: bytes) -> None:
        transport: Any = self._protocol.transport  # it has this, and does not declare it
        if transport is not None and transport.get_write_buffer_size() < DATAGRAM_ANSWERS_BYTES:
            transport.sendto(data, self._address)

    def forget(self) -> None:
        self._protocol.clients.pop(self._address, None)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, came: Callable[[_Client], None]) -> None:
        self._came = came
        self.clients: dict[tuple[str, int], _Client] = {}
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)  # Python 3.11 does not declare it one

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        client = self.clients.get(addr)
        if client is None:
            if len(self.clients) >= DATAGRAM_CLIENTS_MAX:
                return  # datagrams may be lost
            client = self.clients[addr] = _Client(addr, self)
            self._came(client)
        client.came(data)


def _bound(address: str, port: int, protocol: str) -> socket.socket:
    is_v6 = ":" in address
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    bound = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, kind)
    try:
        bound.setblocking(False)
        if protocol != "udp":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_v6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((address, port))
        if protocol != "udp":
            bound.listen(BACKLOG)  # now: another could listen beside one that is only bound
    except BaseException:
        bound.close()
        raise
    return bound


def _refusal(error: OSError, address: str, port: int) -> PerdureError:
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    if error.errno == errno.EADDRINUSE:
        return Conflict(
            f"port {where} of the host is already allocated", hint="Publish it on another, or let one be found: -p PORT"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return NoRights(f"port {where} of the host may not be listened on: {error.strerror}")
    return InvalidValue(f"the host cannot listen on {where}: {error.strerror}")
