"""Freeze and thaw, and the parsers under noise. Mounts, clock and entropy are the vm tests' part."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from perdure.errors import Conflict, GuestFailed, InvalidValue
from perdure.execution.guest.session import GuestSession, Identity
from perdure.formats import channel
from perdure.model import ExecSpec
from perdure.testing.cgroups import new_cgroup

from .conftest import DEADLINE_S, Guest


@pytest_asyncio.fixture
async def frozen_guest(guest_build: Path, tmp_path: Path) -> AsyncIterator[Guest]:
    """A guestd whose workload has a cgroup of its own, as in a VM."""
    try:
        folder = new_cgroup(secrets.token_hex(4))
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    guest = Guest(tmp_path)
    try:
        await guest.start(guest_build / "guestd-test", "--test-cgroup", str(folder))
        yield guest
    finally:
        await guest.stop()
        (folder / "cgroup.kill").write_text("1")
        await asyncio.wait_for(_until_empty(folder), DEADLINE_S)
        folder.rmdir()


async def _until_empty(folder: Path) -> None:
    while (folder / "cgroup.procs").read_text():  # noqa: ASYNC110 - a cgroup v2 has nothing to wait on but its polls
        await asyncio.sleep(0.005)


async def _next_tick(ticks: AsyncIterator[tuple[int, int, bytes]]) -> float:
    """When one tick more has come."""
    await asyncio.wait_for(anext(ticks), DEADLINE_S)
    return time.monotonic()


async def test_quiesce_stops_the_workload_and_wake_lets_it_go_on(frozen_guest: Guest) -> None:
    session = frozen_guest.session
    process = await session.exec(ExecSpec(command=["sh", "-c", "while :; do echo tick; sleep 0.02; done"]))
    ticks = process.output()
    await _next_tick(ticks)
    done = await session.quiesce(DEADLINE_S)
    assert done.frozen
    assert done.synced
    use = done.memory_use
    assert use is not None
    assert use.total_kib > use.free_kib > 0
    assert use.anonymous_kib > 0 and use.kernel_kib > 0
    assert {process.pid, *(one.pid for one in use.processes)} == {one.pid for one in use.processes}
    sizes = [one.anonymous_kib for one in use.processes]
    assert sizes == sorted(sizes, reverse=True)
    assert "sh" in {one.name for one in use.processes}
    seen = process.received(1)
    await frozen_guest.cut()
    assert session.info is not None
    assert session.info.frozen
    assert (await session.files.stat("/")).path == ""  # file tools run outside of the frozen cgroup
    assert process.received(1) - seen < 200
    still = process.received(1)
    starting = asyncio.create_task(session.exec(ExecSpec(command=["true"])))
    await session.files.stat("/")
    assert process.received(1) == still
    assert not starting.done()  # what is started now begins after the thaw
    await session.wake(time.time(), os.urandom(64), Identity(hostname="other"))
    await _next_tick(ticks)
    assert await (await asyncio.wait_for(starting, DEADLINE_S)).wait() == 0
    await session.quiesce(DEADLINE_S)
    await session.thaw()
    assert session.info.frozen  # of the hello; the next says otherwise
    await frozen_guest.cut()
    assert not session.info.frozen
    await process.signal(9)
    assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 137


async def test_a_frozen_process_can_be_killed(frozen_guest: Guest) -> None:
    session = frozen_guest.session
    process = await session.exec(ExecSpec(command=["sleep", "60"]))
    await session.quiesce(DEADLINE_S)
    await process.signal(9)
    assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 137
    await session.thaw()


async def test_quiesce_keeps_to_its_budget(frozen_guest: Guest) -> None:
    done = await asyncio.wait_for(frozen_guest.session.quiesce(0), DEADLINE_S)
    assert not done.synced
    await frozen_guest.session.thaw()


async def test_a_quiesce_needs_no_new_process_and_survives_the_loss_of_its_own(frozen_guest: Guest) -> None:
    session = frozen_guest.session

    async def quiesced(budget_s: float = DEADLINE_S) -> bool:
        done = await asyncio.wait_for(session.quiesce(budget_s), 2 * DEADLINE_S)
        assert (done.memory_use is not None) == done.synced
        await session.thaw()
        return done.synced

    def children() -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    pid = frozen_guest.pid
    assert children() == []
    assert await quiesced()
    (own,) = children()
    assert await quiesced()
    assert not await quiesced(0)
    assert await quiesced()
    assert children() == [own]
    os.kill(own, 9)
    async with asyncio.timeout(DEADLINE_S):
        while own in children():  # noqa: ASYNC110 - guestd reaps it; proc(5) has nothing to wait on
            await asyncio.sleep(0.005)
    assert await quiesced()
    assert children() not in ([], [own])


async def test_nothing_is_started_before_the_image_is_there(guest_build: Path, tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.session.configure = _nothing  # type: ignore[method-assign]
    try:
        await guest.start(guest_build / "guestd-test")
        assert guest.session.info is not None
        assert not guest.session.info.configured
        with pytest.raises(Conflict, match="configure comes first"):
            await guest.session.exec(ExecSpec(command=["true"]))
        with pytest.raises(InvalidValue, match="64 bytes"):
            await GuestSession.configure(guest.session, hostname="x" * 65)
        boot_id = guest.session.info.boot_id
        await GuestSession.configure(guest.session, hostname="x")
        await guest.cut()
        assert guest.session.info.configured
        assert guest.session.info.boot_id == boot_id
    finally:
        await guest.stop()


async def _nothing(**_: object) -> None:
    return None


async def test_a_session_that_is_closed_says_why(guest: Guest) -> None:
    process = await guest.session.exec(ExecSpec(command=["sleep", "60"]))
    waiting = asyncio.create_task(process.wait())
    await asyncio.sleep(0)
    guest.session.close(GuestFailed("the machine died"))
    with pytest.raises(GuestFailed, match="the machine died"):
        await waiting
    with pytest.raises(GuestFailed, match="the machine died"):
        await guest.session.thaw()
    with pytest.raises(GuestFailed, match="the machine died"):
        await guest.session.ready(1)


async def test_a_guest_that_never_comes_is_an_error() -> None:
    async def nobody(_: object) -> None: ...

    session = GuestSession(nobody)
    with pytest.raises(GuestFailed, match=r"did not connect within 0\.01 s"):
        await session.ready(0.01)
    session.connection_up(lambda _: None)
    with pytest.raises(Exception, match="speaks version 9"):
        session.data_received(channel.Hello(9, 0, 0, b"", 1, 0, 0).encode())


async def test_noise_from_the_host_costs_connections_only(guest: Guest) -> None:
    process = await guest.session.exec(ExecSpec(command=["cat"], stdin=True))
    for kind in (*range(0x40, 0x53), 0, 255):
        for size in (0, 1, 7, 8, 9, 17, 40):
            payload = bytes([kind]) + (os.urandom(size) if size != 17 else b"\xff" * size)
            if kind == channel.PowerOff.type and size == 8:
                continue  # that one would be obeyed
            await guest.send_raw(len(payload).to_bytes(4, "little") + payload)
        guest.session._ready.clear()
        await guest.send_raw(b"\xff\xff\xff\xff")
        await guest.session.ready(DEADLINE_S)
    await process.write_stdin(b"still here")
    process.close_stdin()
    async with asyncio.timeout(DEADLINE_S):
        assert [data async for _, _, data in process.output()] == [b"still here"]


def test_the_parsers_under_fuzz(guest_build: Path) -> None:
    seconds = os.environ.get("PERDURE_FUZZ_S", "3")
    done = subprocess.run(
        [guest_build / "fuzz", seconds], capture_output=True, text=True, timeout=float(seconds) * 10 + 60
    )
    assert done.returncode == 0, done.stdout + done.stderr
