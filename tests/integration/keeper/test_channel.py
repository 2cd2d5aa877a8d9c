"""The relay between a guest and its node: every byte once and in order, bounded, and control never behind it.

The guest's side is what Firecracker does when guestd dials: a connection to ``vsock.sock_4751``.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable

import pytest

from perdure.errors import ProtocolError
from perdure.execution.machine.remote import Keeper
from perdure.keeper import line

from .conftest import DEADLINE_S, Host, connected, ended, jails_under
from .test_lifecycle import SANDBOX, running


class End:
    """A node's end of the channel that remembers everything."""

    def __init__(self) -> None:
        self.send: Callable[[bytes], None] | None = None
        self.got = bytearray()
        self.ups = self.downs = 0
        self.refuse = False
        self._changed = asyncio.Event()

    def connection_up(self, send: Callable[[bytes], None]) -> None:
        self.send = send
        self.ups += 1
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        if self.refuse:
            self.refuse = False
            raise ProtocolError("not what was expected")
        self.got += data
        self._changed.set()

    def connection_down(self) -> None:
        self.downs += 1
        self._changed.set()

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not done():
                self._changed.clear()
                await self._changed.wait()

    def say(self, data: bytes) -> None:
        assert self.send is not None
        self.send(data)


Guest = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def dial(host: Host) -> Guest:
    (jail,) = jails_under(host.below / "m" / SANDBOX)
    return await asyncio.open_unix_connection(str(jail / "vsock.sock_4751"))


async def hang_up(guest: Guest) -> None:
    guest[1].close()
    try:
        await guest[1].wait_closed()
    except OSError:
        pass  # the keeper hung up first


async def at_end(guest: Guest) -> None:
    async with asyncio.timeout(DEADLINE_S):
        try:
            while await guest[0].read(65536):
                pass
        except ConnectionError:
            pass


@pytest.fixture
async def keeper(host: Host) -> Keeper:
    host.start()
    made, _ = await running(host, await connected(host))
    return made


async def test_bytes_both_ways(host: Host, keeper: Keeper) -> None:
    end = End()
    keeper.connect_channel(end)
    guest = await dial(host)
    await end.until(lambda: end.ups == 1)
    up, down = random.Random(1).randbytes(3_000_000), random.Random(2).randbytes(3_000_000)
    guest[1].write(up)
    end.say(down)
    async with asyncio.timeout(DEADLINE_S):
        assert hashlib.sha256(await guest[0].readexactly(len(down))).digest() == hashlib.sha256(down).digest()
        await keeper.drain()
    await end.until(lambda: len(end.got) >= len(up))
    assert bytes(end.got) == up
    await hang_up(guest)
    await end.until(lambda: end.downs == 1)
    await ended(keeper)


async def test_control_never_waits_behind_the_channel(host: Host, keeper: Keeper) -> None:
    end = End()
    keeper.connect_channel(end)
    guest = await dial(host)  # it reads nothing, as a paused machine
    await end.until(lambda: end.ups == 1)
    data = random.Random(3).randbytes(8_000_000)
    end.say(data)
    keeper.pause_channel()
    flood = random.Random(4).randbytes(4_000_000)
    guest[1].write(flood)
    stat = await keeper.request("stat", timeout_s=DEADLINE_S)
    assert stat["state"] == "running"
    await keeper.request("pause", timeout_s=DEADLINE_S)
    await keeper.request("continue", timeout_s=DEADLINE_S)
    assert len(end.got) <= line.WINDOW
    drained = asyncio.create_task(keeper.drain())
    await asyncio.sleep(0)
    assert not drained.done()
    keeper.resume_channel()
    async with asyncio.timeout(DEADLINE_S):
        assert await guest[0].readexactly(len(data)) == data
        await drained
    await end.until(lambda: len(end.got) >= len(flood))
    assert bytes(end.got) == flood
    await hang_up(guest)
    await ended(keeper)


async def test_the_newest_connection_counts_and_stale_bytes_are_dropped(host: Host, keeper: Keeper) -> None:
    end = End()
    keeper.connect_channel(end)
    first = await dial(host)
    await end.until(lambda: end.ups == 1)
    stale = end.send
    second = await dial(host)
    assert stale is not None
    stale(b"for the first")  # the node does not know yet
    await end.until(lambda: end.ups == 2)
    stale(b"for the first")  # it knows now
    end.say(b"for the second")
    async with asyncio.timeout(DEADLINE_S):
        assert await second[0].readexactly(14) == b"for the second"
    await at_end(first)
    assert end.downs == 1
    await hang_up(first)
    await hang_up(second)
    await ended(keeper)


async def test_a_guest_that_dials_without_a_node_waits_unread(host: Host, keeper: Keeper) -> None:
    launcher = await connected(host)
    end = End()
    keeper.connect_channel(end)
    before = await dial(host)
    await end.until(lambda: end.ups == 1)
    keeper.close()
    await at_end(before)  # what it had sent may be lost with that node: it dials again
    guest = await dial(host)
    guest[1].write(b"hello" * 1000)
    await guest[1].drain()
    later = await launcher.attach(SANDBOX)
    end = End()
    await later.request("stat")  # by now it came up, and nobody has taken it
    later.connect_channel(end)
    await end.until(lambda: len(end.got) == 5000)
    assert end.ups == 1 and end.downs == 0
    third = await launcher.attach(SANDBOX)  # a node that replaces a living one
    await end.until(lambda: end.downs == 1)
    await at_end(guest)
    for each in (before, guest):
        await hang_up(each)
    await ended(third)


async def test_a_node_resets_what_it_cannot_read(host: Host, keeper: Keeper) -> None:
    end = End()
    keeper.connect_channel(end)
    guest = await dial(host)
    await end.until(lambda: end.ups == 1)
    end.refuse = True
    guest[1].write(b"nonsense")
    await end.until(lambda: end.downs == 1)
    await at_end(guest)
    again = await dial(host)
    again[1].write(b"sense")
    await end.until(lambda: bytes(end.got) == b"sense")
    for each in (guest, again):
        await hang_up(each)
    await ended(keeper)
