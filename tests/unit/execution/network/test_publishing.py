"""Published ports: real connections to a node's end, with a real server as the guest."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from perdure.errors import Conflict, InvalidValue, Unavailable
from perdure.execution.network.publishing import Published, Streams, _Client, _Datagrams
from perdure.execution.sandboxes.activity import Activity
from perdure.model import PublishedPort

DEADLINE_S = 10.0


class Guest:
    """Answers what it is told with the same in capitals, once it has heard the end; counts who came."""

    def __init__(self) -> None:
        self.came = 0
        self.somebody = asyncio.Event()
        self.refuses = False
        self.server: asyncio.Server | None = None

    async def dial(self, protocol: str, port: int) -> Streams:
        self.came += 1
        self.somebody.set()
        if self.refuses:
            raise Unavailable("nobody listens")
        assert self.server is not None and (protocol, port) == ("tcp", 80)
        return await asyncio.open_connection(*self.server.sockets[0].getsockname())

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        await writer.drain()
        writer.close()


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    guest = Guest()
    guest.server = await asyncio.start_server(guest.serve, "127.0.0.1", 0)
    yield guest
    guest.server.close()


@pytest.fixture
async def published(guest: Guest) -> AsyncIterator[Published]:
    published = Published("box", guest.dial)
    yield published
    await published.close()


async def _ask(port: int, data: bytes) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        writer.write_eof()  # the other way goes on
        answer = await reader.read()
        writer.close()
        return answer


LOCAL = PublishedPort(guest_port=80, host_ip="127.0.0.1")


async def test_a_connection_is_use_of_the_sandbox_for_as_long_as_it_lasts(guest: Guest) -> None:
    activity, dialled = Activity(), asyncio.Event()

    async def dial(protocol: str, port: int) -> Streams:
        dialled.set()
        return await guest.dial(protocol, port)

    published = Published("box", dial, activity.busy)
    (port,) = await published.open([LOCAL])
    assert not activity.is_busy
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port.host_port)
        await dialled.wait()
        assert activity.is_busy
        writer.write_eof()
        await reader.read()
        writer.close()
        await published.close()
    assert not activity.is_busy


async def test_bytes_go_both_ways_and_each_way_ends_by_itself(published: Published, guest: Guest) -> None:
    (port,) = await published.open([LOCAL])
    assert (port.guest_port, port.host_ip) == (80, "127.0.0.1") and port.host_port
    assert await _ask(port.host_port, b"hello " * 100_000) == b"HELLO " * 100_000
    answers = await asyncio.gather(*(_ask(port.host_port, b"%d" % number) for number in range(50)))
    assert answers == [b"%d" % number for number in range(50)]
    assert guest.came == 51


async def test_nobody_is_woken_before_somebody_comes(published: Published, guest: Guest) -> None:
    await published.open([LOCAL])
    assert guest.came == 0


async def test_one_that_the_guest_refuses_is_reset_and_the_next_is_served(published: Published, guest: Guest) -> None:
    (port,) = await published.open([LOCAL])
    guest.refuses = True
    with pytest.raises(ConnectionResetError):
        await _ask(port.host_port, b"x")
    guest.refuses = False
    assert await _ask(port.host_port, b"x") == b"X"


async def test_without_an_address_every_one_is_listened_on(published: Published) -> None:
    (port,) = await published.open([PublishedPort(guest_port=80)])
    assert await _ask(port.host_port, b"four") == b"FOUR"
    if socket.has_ipv6:
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection("::1", port.host_port)
            writer.write(b"six")
            writer.write_eof()
            assert await reader.read() == b"SIX"
            writer.close()


async def test_a_port_in_use_refuses_all_of_them(published: Published) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = PublishedPort(guest_port=81, host_ip="127.0.0.1", host_port=other.getsockname()[1])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free = probe.getsockname()[1]
        first = PublishedPort(guest_port=80, host_ip="127.0.0.1", host_port=free)
        with pytest.raises(Conflict, match="already allocated"):
            await published.open([first, taken])
        with pytest.raises(ConnectionRefusedError):  # the one that could be had was given back
            await _ask(free, b"x")


async def test_an_address_that_is_not_ours_is_refused(published: Published) -> None:
    with pytest.raises(InvalidValue, match=r"192\.0\.2\.9:"):
        await published.open([PublishedPort(guest_port=80, host_ip="192.0.2.9")])


async def test_close_ends_what_is_connected(published: Published, guest: Guest) -> None:
    (port,) = await published.open([LOCAL])
    reader, writer = await asyncio.open_connection("127.0.0.1", port.host_port)
    async with asyncio.timeout(DEADLINE_S):
        writer.write(b"never finished")
        await writer.drain()
        await guest.somebody.wait()
        await published.close()
        try:
            assert await reader.read() in (b"", b"NEVER FINISHED")
        except ConnectionResetError:
            pass
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await _ask(port.host_port, b"x")


async def test_datagrams_that_wait_are_bounded() -> None:
    client = _Client(("127.0.0.1", 9), _Datagrams(lambda _: None))
    for _ in range(1000):
        client.came(bytes(60_000))
    assert client.held_bytes <= 64 << 10
    assert await client.next() == bytes(60_000) and client.held_bytes == 0


async def test_datagrams_keep_their_borders(guest: Guest) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                size = await reader.readexactly(2)
                writer.write(size + (await reader.readexactly(int.from_bytes(size, "big"))).upper())
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)

    async def dial(protocol: str, port: int) -> Streams:
        assert (protocol, port) == ("udp", 53)
        return await asyncio.open_connection(*server.sockets[0].getsockname())

    published = Published("box", dial)
    (port,) = await published.open([PublishedPort(guest_port=53, host_ip="127.0.0.1", protocol="udp")])
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(2):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.setblocking(False)
        client.connect(("127.0.0.1", port.host_port))
        clients.append(client)
    async with asyncio.timeout(DEADLINE_S):
        for number, client in enumerate(clients):
            await loop.sock_sendall(client, b"one%d" % number)
            assert await loop.sock_recv(client, 100) == b"ONE%d" % number
            await loop.sock_sendall(client, b"two%d" % number)
            await loop.sock_sendall(client, b"three%d" % number)
            said = [await loop.sock_recv(client, 100), await loop.sock_recv(client, 100)]
            assert said == [b"TWO%d" % number, b"THREE%d" % number]
    await published.close()
    server.close()
    for client in clients:
        client.close()
