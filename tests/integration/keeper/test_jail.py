"""The jail that the real jailer makes, around a stand-in for Firecracker."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from perdure.execution.machine.remote import Keeper
from perdure.keeper.jail import FIRST_UID, MACHINES_MAX

from .conftest import Host, connected, ended, gone, jails_under, parent_of


def children_of(pid: int) -> set[int]:
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if parent_of(int(process.name)) == pid:
                found.add(int(process.name))
        except OSError:
            continue  # it has just ended
    return found


def status_of(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


async def machine(host: Host, keeper: Keeper, **more: object) -> int:
    await keeper.request("restore", **host.restore(**more))
    return int((await keeper.request("stat"))["firecracker_pid"])


async def test_each_machine_is_a_user_of_its_own_that_sees_its_own_files_only(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    image, overlays = host.folder / "image.squashfs", [host.folder / f"overlay{number}" for number in (1, 2)]
    image.write_text("of all")
    image.chmod(0o600)
    keepers = []
    users = set()
    for overlay in overlays:
        overlay.write_text(overlay.name)
        overlay.chmod(0o600)
        keepers.append(await launcher.spawn(overlay.name))
        drives = {"image": str(image), "overlay": str(overlay)}
        pid = await machine(host, keepers[-1], drives=drives)
        status = status_of(pid)
        (user,) = {*status["Uid"], *status["Gid"]}
        assert FIRST_UID <= int(user) < FIRST_UID + 2 * MACHINES_MAX
        assert not int(status["CapEff"][0], 16) and not int(status["CapPrm"][0], 16)
        assert status["NoNewPrivs"] == ["1"] and status["Groups"] == []
        assert len(status["NSpid"]) == len(status_of(os.getpid())["NSpid"]) + 1
        users.add(user)
        root = Path(f"/proc/{pid}/root")
        assert {path.name for path in root.iterdir()} == {
            *("dev", "run", "firecracker", "firecracker.pid", "api.sock", "vsock.sock_4751"),
            *("state", "memory", "image", "overlay"),
        }
        assert (root / "overlay").read_text() == overlay.name
        assert overlay.stat().st_uid == int(user) and image.stat().st_uid == 0
        flags = {line.split()[4]: line.split()[5] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}
        assert set(flags) == {"/", "/image", "/overlay", "/memory"}
        assert all(flags[name].startswith("ro,nosuid,nodev,noexec") for name in ("/image", "/memory"))
        assert flags["/overlay"].startswith("rw,nosuid,nodev,noexec")
    assert len(users) == 2
    for keeper in keepers:
        await ended(keeper)
    assert not list((host.below / "jail").iterdir())  # all that was there was in mounts of the keepers' own


async def test_a_killed_keeper_takes_all_with_it_that_it_started(host: Host) -> None:
    """They are other users than it, for which the kernel forgets parent-death signals."""
    host.start()
    launcher = await connected(host)
    keeper = await launcher.spawn("0123456789ab")
    firecracker = await machine(host, keeper)
    children = children_of(keeper.facts["pid"])
    assert firecracker in children and len(children) == 2  # the other one holds their namespace
    os.kill(keeper.facts["pid"], signal.SIGKILL)
    assert all(await asyncio.gather(*(gone(pid) for pid in children)))
    keeper.close()
    again = await launcher.spawn("0123456789ab")
    firecracker = await machine(host, again)
    (holder,) = children_of(again.facts["pid"]) - {firecracker}
    os.kill(holder, signal.SIGKILL)  # and without it nothing runs on that could be forgotten
    assert await gone(firecracker)
    await ended(again)


async def test_what_a_machine_puts_in_its_folder_leads_nobody_astray(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    keeper = await launcher.spawn("0123456789ab")
    await machine(host, keeper)
    (root,) = jails_under(host.below / "m")
    outside = host.folder / "outside"
    outside.mkdir()
    (outside / "file").write_text("stays")
    (root / "link").symlink_to(outside)
    (root / "deep").mkdir()
    (root / "deep" / "link").symlink_to(outside / "file")
    await ended(keeper)
    assert (outside / "file").read_text() == "stays"


@pytest.mark.parametrize("cpus", [-1, "many", True, 1e9])
async def test_a_share_of_processors_that_is_none(host: Host, cpus: object) -> None:
    host.start()
    keeper = await (await connected(host)).spawn("0123456789ab")
    with pytest.raises(Exception, match="'cpus' must be a number"):
        await keeper.request("restore", **host.restore(cpus=cpus))
    await ended(keeper)
