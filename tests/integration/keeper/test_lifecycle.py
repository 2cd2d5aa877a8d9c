"""Who dies with whom, what is cleaned up, and what a later node learns."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.errors import AlreadyRunning, InvalidValue, MachineFailed, NoRights, NotFound, SnapshotInvalid
from perdure.execution.machine.remote import Keeper, Launcher
from perdure.execution.sandboxes import machine
from perdure.model import LauncherAddress

from .conftest import DEADLINE_S, Host, closed, connected, ended, gone

SANDBOX = "0123456789ab"


async def running(host: Host, launcher: Launcher, **more: object) -> tuple[Keeper, int]:
    """A keeper whose stand-in runs, and the stand-in's pid."""
    keeper = await launcher.spawn(SANDBOX)
    await keeper.request("restore", **host.restore(**more))
    return keeper, int((await keeper.request("stat"))["firecracker_pid"])


async def recorded(launcher: Launcher) -> dict[str, object]:
    """The record that the dead machine left, once the launcher has seen its keeper die."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            for kept in await launcher.list():
                if not kept.alive:
                    return dict(kept.exit)
            await asyncio.sleep(0.01)


async def exited(keeper: Keeper) -> dict[str, object]:
    event: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()
    keeper.listen(event.set_result)
    async with asyncio.timeout(DEADLINE_S):
        return await event


async def test_end_leaves_nothing(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    keeper, firecracker = await running(host, launcher)
    assert (await launcher.list())[0].alive
    folder = host.below / "m" / SANDBOX
    assert folder.stat().st_mode & 0o777 == 0o700
    await ended(keeper)
    assert await gone(firecracker) and await gone(keeper.facts["pid"])
    assert await launcher.list() == []
    assert not folder.exists()
    await ended(await launcher.spawn(SANDBOX))  # the name is free again


async def test_a_new_keeper_at_once_after_the_one_before(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    for _ in range(5):
        keeper, firecracker = await running(host, launcher)
        await keeper.request("end")
        keeper.close()
        keeper, firecracker = await running(host, launcher)
        os.kill(firecracker, signal.SIGKILL)
        assert (await exited(keeper))["cause"] == "machine-died"
        keeper.close()
    await launcher.forget(SANDBOX)


@pytest.mark.parametrize("stopped", [True, False])
async def test_a_keeper_that_answers_nobody_is_killed_and_its_name_is_free(
    host: Host, stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fence of a machine that cannot be told to end: the next one of its sandbox never lives beside it."""
    host.start()
    launcher = await connected(host)
    keeper, firecracker = await running(host, launcher)
    if stopped:
        os.kill(keeper.facts["pid"], signal.SIGSTOP)
        monkeypatch.setattr(machine, "STRAY_TIMEOUT_S", 0.3)
    keeper.close()
    await machine.end_stray(launcher, SANDBOX)
    assert await gone(firecracker) and await gone(keeper.facts["pid"])
    assert await launcher.list() == []
    await launcher.kill(SANDBOX)  # nothing is there: nothing happens
    await ended(await launcher.spawn(SANDBOX))


async def test_a_killed_keeper_takes_its_machine_with_it(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    keeper, firecracker = await running(host, launcher)
    os.kill(keeper.facts["pid"], signal.SIGKILL)
    await closed(keeper)
    assert await gone(firecracker)
    record = await recorded(launcher)
    assert record["cause"] == "keeper-died" and "signal 9" in str(record["detail"])
    assert [entry.name for entry in (host.below / "m" / SANDBOX).iterdir()] == ["exit.json"]
    with pytest.raises(MachineFailed, match="is gone"):
        await keeper.request("stat")
    with pytest.raises(NotFound) as missing:
        await launcher.attach(SANDBOX)
    assert missing.value.details["cause"] == "keeper-died"
    await launcher.forget(SANDBOX)
    assert await launcher.list() == []


async def test_a_killed_machine_is_reported_with_its_cause(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    keeper, firecracker = await running(host, launcher)
    os.kill(firecracker, signal.SIGSEGV)
    event = await exited(keeper)
    assert event["cause"] == "machine-died"
    assert "signal 11" in str(event["detail"]) and "stand-in speaks" in str(event["detail"])
    stat = await keeper.request("stat")
    assert stat["state"] == "exited" and stat["exit"]["cause"] == "machine-died" and stat["firecracker_pid"] == 0
    keeper.close()
    record = await recorded(launcher)  # what a later node learns
    assert record["cause"] == "machine-died"


async def test_a_machine_that_dies_without_a_node_leaves_its_record(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    keeper, firecracker = await running(host, launcher)
    keeper.close()
    await closed(keeper)
    os.kill(firecracker, signal.SIGKILL)
    record = await recorded(launcher)
    assert record["cause"] == "machine-died" and "signal 9" in str(record["detail"])
    assert await gone(keeper.facts["pid"])


async def test_keepers_survive_their_launcher_and_are_found_again(host: Host) -> None:
    first = host.start()
    launcher = await connected(host)
    keeper, firecracker = await running(host, launcher)
    first.kill()
    first.wait()
    assert (await keeper.request("stat"))["firecracker_pid"] == firecracker  # the connection is the keeper's own
    host.start()
    launcher = await connected(host)
    [kept] = await launcher.list()
    assert kept.alive and kept.pid == keeper.facts["pid"]
    again = await launcher.attach(SANDBOX)
    await closed(keeper)  # the newer node has replaced it
    assert again.facts["state"] == "running" and again.facts["firecracker_pid"] == firecracker
    os.kill(again.facts["pid"], signal.SIGKILL)
    assert await gone(firecracker)
    assert (await recorded(launcher))["cause"] == "keeper-died"


async def test_what_died_while_no_launcher_lived_is_cleaned_up(host: Host) -> None:
    first = host.start()
    launcher = await connected(host)
    keeper, firecracker = await running(host, launcher)
    first.kill()
    first.wait()
    os.kill(keeper.facts["pid"], signal.SIGKILL)
    assert await gone(firecracker)
    host.start()
    launcher = await connected(host)
    assert (await recorded(launcher))["cause"] == "keeper-died"
    assert [entry.name for entry in (host.below / "m" / SANDBOX).iterdir()] == ["exit.json"]


async def test_a_restore_that_fails_releases_everything(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    keeper = await launcher.spawn(SANDBOX)
    with pytest.raises(MachineFailed, match="refused PUT /snapshot/load"):
        await keeper.request("restore", **host.restore(state="refuse-me"))
    stat = await keeper.request("stat")
    assert stat["state"] == "empty" and stat["firecracker_pid"] == 0
    with pytest.raises(MachineFailed, match="could not be started"):
        await keeper.request("restore", **host.restore(firecracker="/nowhere/firecracker"))
    with pytest.raises(MachineFailed, match="machine-exited"):
        await keeper.request("restore", **host.restore(state="exit-zero"))
    with pytest.raises(MachineFailed, match="/nowhere/memory"):
        await keeper.request(
            "restore", **host.restore(memory={"kind": "file", "path": "/nowhere/memory", "name": "template"})
        )
    left = {entry.name for entry in (host.below / "m" / SANDBOX).iterdir()}
    assert left <= {"keeper.sock", "console.log"}
    await keeper.request("restore", **host.restore())  # and the keeper is as good as new
    await ended(keeper)


async def test_a_console_is_bounded_and_its_end_is_kept(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    keeper, firecracker = await running(host, launcher, state="talk-much")  # 2 MB, said before it agrees to go on
    folder = host.below / "m" / SANDBOX
    os.kill(firecracker, signal.SIGKILL)
    event = await exited(keeper)
    assert "line 19999" in str(event["detail"])
    assert sum(file.stat().st_size for file in folder.glob("console.log*")) < 512 << 10
    await ended(keeper)


async def test_a_map_that_is_not_one_is_refused_by_the_pager(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    keeper = await launcher.spawn(SANDBOX)
    (host.folder / "map").write_bytes(b"not a map")
    with pytest.raises(SnapshotInvalid):
        # the stand-in agrees at once, so the pager's refusal may come after the restore: then as an event
        await keeper.request("restore", **host.restore(memory={"kind": "layers", "map": str(host.folder / "map")}))
        raise SnapshotInvalid(str((await exited(keeper))["detail"]))
    stat = await keeper.request("stat")
    assert stat["state"] in ("empty", "exited") and not stat["firecracker_pid"] and not stat["pager_pid"]
    await ended(keeper)


async def test_a_machine_without_a_node_is_kept_and_an_empty_keeper_is_not(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    keeper = await launcher.spawn(SANDBOX)
    with pytest.raises(AlreadyRunning):
        await launcher.spawn(SANDBOX)
    with pytest.raises(AlreadyRunning):
        await launcher.forget(SANDBOX)
    keeper.close()
    assert await gone(keeper.facts["pid"])
    keeper, firecracker = await running(host, launcher)
    keeper.close()
    await closed(keeper)
    again = await launcher.attach(SANDBOX)
    assert again.facts["firecracker_pid"] == firecracker
    await ended(again)


async def test_requests_that_a_state_does_not_allow(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    keeper = await launcher.spawn(SANDBOX)
    for op, params, kind in [
        ("pause", {}, "illegal-transition"),
        ("capture", {"kind": "diff", "collector": "/bin/true"}, "illegal-transition"),
        ("capture", {"kind": "half"}, "invalid-value"),
        ("collect", {"folder": "/tmp"}, "invalid-value"),
        ("restore", {**host.restore(), "memory": 7}, "invalid-value"),
        ("restore", {**host.restore(), "drives": {"../x": "/y"}}, "invalid-value"),
        ("boot", {}, "invalid-value"),
        ("dance", {}, "invalid-value"),
    ]:
        with pytest.raises(Exception) as refused:
            await keeper.request(op, **params)
        assert getattr(refused.value, "code", "") == kind, op
    await ended(keeper)


async def test_the_launcher_refuses_strangers_and_nonsense(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    with pytest.raises(NoRights):
        await Launcher.connect(LauncherAddress("wrong", unix_path=host.address.unix_path))
    for name in ("../x", "", "a/b", "x" * 65, ".hidden"):
        with pytest.raises(InvalidValue):
            await launcher.spawn(name)
    with pytest.raises(NotFound):
        await launcher.attach("nobody")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(DEADLINE_S)
        stranger.connect(host.address.unix_path)
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while stranger.recv(4096):
            pass  # told why, then closed
    assert Path(host.address.unix_path).stat().st_mode & 0o777 == 0o600
    assert (await launcher.ping())["keepers"] == 0
    second = host.start()
    assert second.wait(DEADLINE_S) == 1 and "already serves" in host.log()


async def test_programs_below_the_line(host: Host) -> None:
    host.start()
    launcher = await connected(host)
    said: list[bytes] = []
    argv = ["/bin/sh", "-c", "echo $WORD; pwd; echo oops >&2; sleep 100 & exit 7"]
    assert await launcher.run(argv, env={"WORD": "hello"}, cwd="/usr", output=said.append) == 7
    assert b"".join(said) == b"hello\n/usr\noops\n"
    total = 0

    def count(data: bytes) -> None:
        nonlocal total
        total += len(data)

    assert await launcher.run(["head", "-c", "5000000", "/dev/zero"], output=count) == 0
    assert total == 5_000_000
    with pytest.raises(MachineFailed, match="No such file"):
        await launcher.run(["/nowhere/program"])
    with pytest.raises(TimeoutError):
        await launcher.run(["/bin/sh", "-c", "exec sleep 1000"], cwd=str(host.below), timeout_s=0.5)
    assert (await launcher.ping())["keepers"] == 0
    # the fixture checks that the program (its folder is the below-line folder) has ended


def test_the_launcher_imports_little() -> None:
    """What is imported before it answers decides how long the emulated host takes to start."""
    code = "import perdure.keeper.launcher, sys; print(*sys.modules)"
    argv = [sys.executable, "-c", code]
    modules = set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())
    heavy = {"asyncio", "typing", "dataclasses", "inspect", "subprocess", "pathlib", "ctypes", "zstandard", "msgspec"}
    assert not modules & heavy


async def test_no_keeper_before_machines_can_be(host: Host) -> None:
    """In an emulated host the launcher answers while KVM is still being loaded."""
    ready = host.folder / "ready"
    host.start("--after", str(ready))
    launcher = await connected(host)
    spawning = asyncio.create_task(launcher.spawn(SANDBOX))
    assert [kept.sandbox_id for kept in await launcher.list()] == []  # it answers others meanwhile
    assert not spawning.done()
    ready.touch()
    keeper = await asyncio.wait_for(spawning, DEADLINE_S)
    await ended(keeper)


async def test_machines_run_on_the_processors_that_are_for_them(host: Host) -> None:
    """An emulated host's first processor must run no guest (docs/design/0003)."""
    every = os.sched_getaffinity(0)
    only = max(every)
    ready = host.folder / "ready"
    process = host.start("--after", str(ready), "--processors", str(only))
    launcher = await connected(host)
    assert await launcher.run(["/bin/true"]) == 0
    assert os.sched_getaffinity(process.pid) == every  # they are switched off and on until then
    ready.touch()
    said: list[bytes] = []
    show = ["/bin/sh", "-c", "grep Cpus_allowed_list /proc/self/status"]
    assert await launcher.run(show, output=said.append) == 0
    assert b"".join(said).split()[1] == str(only).encode()
    keeper, firecracker = await running(host, launcher)
    assert os.sched_getaffinity(firecracker) == {only}
    await ended(keeper)
