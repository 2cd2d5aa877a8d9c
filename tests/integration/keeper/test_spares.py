"""Keepers that are started ahead: the next sandbox gets one, and none outlives its launcher."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.errors import MachineFailed
from perdure.execution.machine.remote import Keeper, Launcher

from .conftest import DEADLINE_S, Host, connected, ended, gone, is_gone, jails_under, parent_of, processes_under

FIRST, SECOND, THIRD = "000000000001", "000000000002", "000000000003"


async def spawned(host: Host, launcher: Launcher, sandbox: str) -> Keeper:
    return await launcher.spawn(sandbox, firecracker=str(host.firecracker), pager=str(host.pager))


async def spare(host: Host) -> list[int]:
    """The processes of the spare (keeper, Firecracker, pager), once it is complete."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = processes_under(host.below / "spares")
            if len(found) == 3 and any((jail / "api.sock").exists() for jail in jails_under(host.below / "spares")):
                return found
            await asyncio.sleep(0.01)


async def test_the_next_sandbox_gets_what_was_started_ahead(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    first = await spawned(host, launcher, FIRST)
    await first.request("restore", **host.restore())
    waiting = await spare(host)
    second = await spawned(host, launcher, SECOND)
    assert second.facts["pid"] in waiting
    await second.request("restore", **host.restore())
    stat = await second.request("stat")
    assert stat["state"] == "running" and stat["firecracker_pid"] in waiting
    assert Path(f"/proc/{stat['pid']}/cwd").readlink() == host.below / "m" / SECOND
    (pager,) = set(waiting) - {stat["pid"], stat["firecracker_pid"]}
    assert await gone(pager)  # a raw file needs none
    assert {kept.sandbox_id for kept in await launcher.list()} == {FIRST, SECOND}
    assert set(await spare(host)).isdisjoint(waiting)  # and the one after that gets another
    for keeper in (first, second):
        await ended(keeper)
    assert not list((host.below / "m").iterdir())


async def test_a_taken_one_outlives_its_launcher_and_a_spare_does_not(host: Host) -> None:
    launcher_process = host.start()
    launcher = await connected(host)
    first = await spawned(host, launcher, FIRST)
    await spare(host)
    second = await spawned(host, launcher, SECOND)
    await second.request("restore", **host.restore())
    left = await spare(host)
    launcher_process.kill()
    launcher_process.wait()
    assert all([await gone(pid) for pid in left])
    assert (await second.request("stat"))["state"] == "running"
    host.start()
    launcher = await connected(host)
    assert {kept.sandbox_id for kept in await launcher.list()} == {FIRST, SECOND}
    assert not list((host.below / "spares").iterdir())
    third = await spawned(host, launcher, THIRD)
    await spare(host)
    for keeper in (first, second, third):
        await ended(keeper)


async def test_a_spare_that_dies_is_replaced_and_missed_by_nobody(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    first = await spawned(host, launcher, FIRST)
    waiting = await spare(host)
    os.kill(parent_of(waiting[-1]), signal.SIGKILL)
    assert all([await gone(pid) for pid in waiting])
    again = await spare(host)
    assert set(again).isdisjoint(waiting)
    programs = [pid for pid in again if "python" not in Path(f"/proc/{pid}/exe").readlink().name]
    os.kill(programs[0], signal.SIGKILL)  # of a keeper that lives: it gives up
    second = await spawned(host, launcher, SECOND)
    await second.request("restore", **host.restore())
    assert (await second.request("stat"))["state"] == "running"
    for keeper in (first, second):
        await ended(keeper)


async def test_other_programs_than_those_that_wait(host: Host) -> None:
    """A newer Firecracker: what was started ahead is ended, nothing of it serves."""
    host.start()
    launcher = await connected(host)
    first = await spawned(host, launcher, FIRST)
    waiting = await spare(host)
    newer = host.folder / "newer-firecracker"
    newer.write_bytes(host.firecracker.read_bytes())
    newer.chmod(0o755)
    second = await launcher.spawn(SECOND, firecracker=str(newer), pager=str(host.pager))
    await second.request("restore", **host.restore(firecracker=str(newer)))
    assert all(await asyncio.to_thread(lambda: [is_gone(pid) for pid in waiting]))
    third = await spawned(host, launcher, THIRD)  # and back again
    await third.request("restore", **host.restore())
    for keeper in (first, second, third):
        await ended(keeper)


async def test_programs_that_do_not_start_are_not_tried_for_ever(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    broken = host.folder / "broken-firecracker"
    broken.write_bytes(host.firecracker.read_bytes())
    broken.chmod(0o755)
    keeper = await launcher.spawn(FIRST, firecracker=str(broken), pager=str(host.pager))
    deadline = time.monotonic() + DEADLINE_S
    spares = host.below / "spares"
    while host.log().count("spare keeper: the machine ended") < 3 or processes_under(spares) or list(spares.iterdir()):
        assert time.monotonic() < deadline
        await launcher.ping()
    assert "Traceback" not in host.log() and host.log().count("spare keeper: the machine ended") == 3
    await ended(keeper)


@contextlib.contextmanager
def slow(host: Host, kind: str) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A stand-in that does something only once it is allowed to; and what allows it, to any number of them."""
    program, allowed, over = host.folder / f"{kind}firecracker", threading.Event(), threading.Event()
    program.write_bytes(host.firecracker.read_bytes())
    program.chmod(0o755)

    def go_on() -> None:
        """Each stops itself when it starts."""
        allowed.wait()
        while not over.wait(0.01):
            for pid in processes_under(host.below):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                        os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield program, allowed.set
    finally:
        over.set()
        allowed.set()
        thread.join()


async def taken_early(host: Host, launcher: Launcher, program: Path) -> tuple[Keeper, Keeper]:
    """Two keepers; the second was a spare, whose Firecracker has not started yet."""
    first = await launcher.spawn(FIRST, firecracker=str(program), pager=str(host.pager))
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if waiting := list(host.below.glob("spares/*/keeper.sock")):
                break
            await asyncio.sleep(0.01)
        second = await launcher.spawn(SECOND, firecracker=str(program), pager=str(host.pager))
    assert not waiting[0].exists()
    return first, second


async def test_one_that_is_taken_while_its_programs_start(host: Host) -> None:
    """What its node asks for meanwhile is done, also if nothing more ever comes."""
    host.start()
    launcher = await connected(host)
    with slow(host, "stopped-") as (program, go_on):
        first, second = await taken_early(host, launcher, program)
        restoring = asyncio.create_task(second.request("restore", **host.restore(firecracker=str(program))))
        await asyncio.sleep(0)  # it is sent
        go_on()
        await asyncio.wait_for(restoring, DEADLINE_S)
        assert (await second.request("stat"))["state"] == "running"
        for keeper in (first, second):
            await ended(keeper)


async def test_one_that_is_taken_and_whose_programs_then_do_not_start(host: Host) -> None:
    """Its node hears why, from its own restore; and another program is started all the same."""
    host.start()
    launcher = await connected(host)
    with slow(host, "stopped-broken-") as (program, go_on):
        first, second = await taken_early(host, launcher, program)
        restoring = asyncio.create_task(second.request("restore", **host.restore(firecracker=str(program))))
        await asyncio.sleep(0)
        go_on()
        with pytest.raises(MachineFailed, match="ended with status 3"):
            await asyncio.wait_for(restoring, DEADLINE_S)
        await asyncio.wait_for(second.request("restore", **host.restore()), DEADLINE_S)
        assert (await second.request("stat"))["state"] == "running"
        for keeper in (first, second):
            await ended(keeper)
