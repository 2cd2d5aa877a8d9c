"""Keepers that are started ahead: the next sandbox gets one, and none outlives its launcher."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from perdure.execution.machine.remote import Keeper, Launcher

from .conftest import DEADLINE_S, Host, connected, gone, is_gone, processes_under

FIRST, SECOND, THIRD = "000000000001", "000000000002", "000000000003"


async def spawned(host: Host, launcher: Launcher, sandbox: str) -> Keeper:
    return await launcher.spawn(sandbox, firecracker=str(host.firecracker), pager=str(host.pager))


async def spare(host: Host) -> list[int]:
    """The processes of the spare (keeper, Firecracker, pager), once it is complete."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = processes_under(host.below / "spares")
            if len(found) == 3 and list(host.below.glob("spares/*/api.sock")):
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
    assert Path(f"/proc/{stat['firecracker_pid']}/cwd").readlink() == host.below / "m" / SECOND
    (pager,) = set(waiting) - {stat["pid"], stat["firecracker_pid"]}
    assert await gone(pager)  # a raw file needs none
    assert {kept.sandbox_id for kept in await launcher.list()} == {FIRST, SECOND}
    assert set(await spare(host)).isdisjoint(waiting)  # and the one after that gets another
    for keeper in (first, second):
        await keeper.request("end")
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
        await keeper.request("end")


async def test_a_spare_that_dies_is_replaced_and_missed_by_nobody(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    first = await spawned(host, launcher, FIRST)
    waiting = await spare(host)
    os.kill(waiting[0], signal.SIGKILL)
    assert all([await gone(pid) for pid in waiting])
    again = await spare(host)
    assert set(again).isdisjoint(waiting)
    programs = [pid for pid in again if "python" not in Path(f"/proc/{pid}/exe").readlink().name]
    os.kill(programs[0], signal.SIGKILL)  # of a keeper that lives: it gives up
    second = await spawned(host, launcher, SECOND)
    await second.request("restore", **host.restore())
    assert (await second.request("stat"))["state"] == "running"
    for keeper in (first, second):
        await keeper.request("end")


async def test_other_programs_than_those_that_wait(host: Host) -> None:
    """A newer Firecracker: what was started ahead is ended, nothing of it serves."""
    host.start()
    launcher = await connected(host)
    first = await spawned(host, launcher, FIRST)
    waiting = await spare(host)
    newer = host.folder / "newer"
    newer.write_bytes(host.firecracker.read_bytes())
    newer.chmod(0o755)
    second = await launcher.spawn(SECOND, firecracker=str(newer), pager=str(host.pager))
    await second.request("restore", **host.restore(firecracker=str(newer)))
    assert all(await asyncio.to_thread(lambda: [is_gone(pid) for pid in waiting]))
    third = await spawned(host, launcher, THIRD)  # and back again
    await third.request("restore", **host.restore())
    for keeper in (first, second, third):
        await keeper.request("end")


async def test_programs_that_do_not_start_are_not_tried_for_ever(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    broken = host.folder / "broken"
    broken.write_text("#!/bin/sh\necho tried >>" + str(host.folder / "tries") + "\nexit 1\n")
    broken.chmod(0o755)
    keeper = await launcher.spawn(FIRST, firecracker=str(broken), pager=str(host.pager))
    tries = host.folder / "tries"
    deadline = time.monotonic() + DEADLINE_S
    while not tries.exists() or tries.read_text().count("tried") < 3 or processes_under(host.below / "spares"):
        assert time.monotonic() < deadline
        await launcher.ping()
    assert not list((host.below / "spares").iterdir())
    await keeper.request("end")
