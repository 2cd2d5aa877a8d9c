"""The emulated host and the launcher: started once, found again, ended whole, whatever was killed before.

A test that kills what it likes leaves a host that runs, so most of them share a home, in this order; the others have
one of their own. The assets are shared.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from perdure.errors import MachineFailed, PerdureError, Unavailable
from perdure.execution.machine.remote import Launcher
from perdure.execution.sandboxes import ground
from perdure.host import assets as host_assets
from perdure.host import below, kvm
from perdure.host import emulated as emulated_host
from perdure.host.assets import Assets
from perdure.host.emulated import find_programs, machine_processors
from perdure.host.paths import Home
from perdure.linux import links
from perdure.model import LauncherAddress

pytestmark = pytest.mark.vm
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def assets() -> Assets:
    return host_assets.ensure(Home.find())


@pytest.fixture
def own_home(tmp_path: Path) -> Iterator[Home]:
    yield from ended(replace(Home.find(), root=tmp_path / "home"))


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """One whose emulated host goes on from test to test: each start takes some seconds of both processors."""
    yield from ended(replace(Home.find(), root=tmp_path_factory.mktemp("shared") / "home"))


def ended(own: Home) -> Iterator[Home]:
    """A home; at its end nothing is left."""
    yield own
    below.stop(own)
    left = {path.name for path in own.host.iterdir()} if own.host.is_dir() else set()
    assert left <= {"lock", "console.log", "qemu.log", "launcher.log", "virtiofsd-root.log", "virtiofsd-home.log"}
    assert not own.run.is_dir() or not list(own.run.iterdir())
    assert not own.below_line_folder.exists()
    assert processes_of(own) == []
    assert not card_of(own).exists()


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        find_programs()
    except PerdureError as error:
        pytest.skip(error.message)
    monkeypatch.setattr(kvm, "boots", lambda *_: False)


def card_of(home: Home) -> Path:
    """The line's own network card, on this side."""
    return Path(f"/sys/class/net/pline{home.tag}")


def processes_of(home: Home) -> list[str]:
    """The command lines of all processes that name a home."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if os.fsencode(home.root) in words and int(path.parent.name) != os.getpid():
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


def eventually(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


async def run_below(address: LauncherAddress, *argv: str) -> tuple[int, str]:
    """Exit status and output of a program below the line."""
    output = bytearray()
    launcher = await Launcher.connect(address)
    status = await launcher.run(argv, env={"PATH": "/usr/bin:/bin"}, output=output.extend, timeout_s=DEADLINE_S)
    return status, output.decode()


def test_two_starters_start_one(shared_home: Home, assets: Assets, emulated: None) -> None:
    found: list[LauncherAddress] = []
    threads = [threading.Thread(target=lambda: found.append(below.ensure(shared_home, assets))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert len(processes_of(shared_home)) == len(below.status(shared_home).pids)


async def test_what_is_removed_here_is_let_go_of_there(
    shared_home: Home, assets: Assets, emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel remembers names; for it virtiofsd keeps the files open, and their room is not free."""
    address = below.ensure(shared_home, assets)
    folder, other = shared_home.root / "sandboxes" / "gone", shared_home.root / "volumes" / "data"
    disk, disk2, kept = folder / "disk", other / "disk", shared_home.root / "kept"
    for path in (disk, disk2, kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())
    assert await run_below(address, "/bin/cat", str(disk), str(disk2), str(kept)) == (0, "diskdiskkept")
    shutil.rmtree(folder)
    gone = other.with_name(".data.gone")
    other.rename(gone)  # as volumes and templates are: in there it has its former name
    shutil.rmtree(gone)
    assert {str(disk), str(gone / "disk")} <= set(below.removed(shared_home))

    ground_ = ground.Ground(shared_home)
    await ground_.living_launcher()
    monkeypatch.setattr(ground, "LOOK_EVERY_S", 0.2)
    watching = asyncio.create_task(ground_.watch())
    try:
        await asyncio.to_thread(eventually, lambda: below.removed(shared_home) == [], "removed files are still open")
    finally:
        watching.cancel()
    assert await run_below(address, "/bin/cat", str(kept)) == (0, "kept")


def test_a_card_that_was_taken_away_is_given_back(shared_home: Home, assets: Assets, emulated: None) -> None:
    address = below.ensure(shared_home, assets)
    found = links.Links()
    try:
        card = found.index(card_of(shared_home).name)
        subprocess.run(["ip", "address", "flush", "dev", card_of(shared_home).name], check=True)
        assert below.ping(address, 1.0) is None
        assert below.status(shared_home, timeout_s=1.0).answers
        subprocess.run(["ip", "link", "set", card_of(shared_home).name, "down"], check=True)
        assert below.ping(address, 1.0) is None
        assert below.ensure(shared_home, assets) == address
        assert found.index(card_of(shared_home).name) == card
    finally:
        found.close()


@pytest.mark.parametrize("piece", ["qemu", "virtiofsd-home"])
def test_a_killed_piece_is_noticed_and_all_is_started_again(
    shared_home: Home, assets: Assets, emulated: None, piece: str
) -> None:
    below.ensure(shared_home, assets)
    before = below.status(shared_home).pids
    os.kill(before[piece], signal.SIGKILL)
    eventually(lambda: piece not in below.status(shared_home).pids, f"{piece} still lives")
    eventually(lambda: piece != "qemu" or not card_of(shared_home).exists(), "the line's card is still there")
    address = below.ensure(shared_home, assets)
    after = below.status(shared_home)
    assert after.answers
    assert after.address == address
    assert not set(before.values()) & set(after.pids.values())
    assert below.ping(address) is not None


async def test_one_that_hangs_is_ended(
    shared_home: Home, assets: Assets, emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ground, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(ground, "HANGS_AFTER_S", 1.0)
    stands = ground.Ground(shared_home)
    launcher = await stands.launcher()
    watching = asyncio.create_task(stands.watch())
    try:
        up = asyncio.Event()
        argv = ["sh", "-c", "echo up; exec sleep 1000"]
        waiting = asyncio.create_task(launcher.run(argv, output=lambda data: up.set()))
        await up.wait()
        os.kill(below.status(shared_home).pids["qemu"], signal.SIGSTOP)
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(Unavailable):  # what waits for it hears of its end
                await waiting
            assert await (await stands.launcher()).ping()  # and the next use starts another
    finally:
        watching.cancel()


async def test_the_emulated_host(shared_home: Home, assets: Assets, emulated: None) -> None:
    address = below.ensure(shared_home, assets)
    status = below.status(shared_home, assets)
    assert (status.running, status.answers, status.emulated, status.outdated) == (True, True, True, False)
    assert status.address == address
    assert 0 < status.kernel_boot_s < status.launcher_boot_s

    # It is reached by a card of its own, which goes with it, also when it was killed.
    assert address.tcp_host.startswith("169.254.")
    assert card_of(shared_home).exists()

    began = time.monotonic()
    assert below.ensure(shared_home, assets) == address
    assert time.monotonic() - began < status.launcher_boot_s  # however busy this machine is
    assert below.status(shared_home).pids == status.pids

    # Both sides see each other's files in the home; the rest of the machine can be read, and is never written.
    (shared_home.root / "from-outside").write_text("out")
    script = (
        'cat "$0/from-outside"; echo in >"$0/from-inside"; echo x >/etc/hostname.perdure && cat /etc/hostname.perdure'
    )
    assert await run_below(address, "/bin/sh", "-c", script, str(shared_home.root)) == (0, "outx\n")
    assert (shared_home.root / "from-inside").read_text() == "in\n"
    assert not Path("/etc/hostname.perdure").exists()

    # It answers while KVM is still being loaded, and machines wait for that.
    await run_below(address, "/bin/sh", "-c", f"until test -e {below.MACHINES_FILE}; do sleep 0.05; done")
    # One processor is kept free of guests: QEMU's state of the first one is written to by the others, without a lock.
    processors = len(machine_processors())
    show = "grep Cpus_allowed_list /proc/self/status; cat /sys/devices/system/cpu/online"

    async def bound() -> list[str]:
        return (await run_below(address, "/bin/sh", "-c", show))[1].split()[1:]

    wanted = [f"1-{processors}" if processors > 1 else "1", f"0-{processors}"]
    assert await bound() == wanted
    keeper = await (await Launcher.connect(address)).spawn("0123456789ab")  # the first: with it networks begin
    pid = keeper.facts["pid"]
    allowed = (await run_below(address, "/bin/grep", "Cpus_allowed_list", f"/proc/{pid}/status"))[1].split()[1]
    assert [allowed, *(await bound())] == [wanted[0], *wanted]
    await keeper.request("end")
    keeper.close()

    # KVM works in there: the real Firecracker boots a kernel up to its panic for want of a root.
    machine = shared_home.root / "machine.json"
    boot = {"kernel_image_path": str(assets.vmlinux), "boot_args": kvm.BOOT_ARGUMENTS}
    machine.write_text(
        json.dumps({"boot-source": boot, "drives": [], "machine-config": {"vcpu_count": 1, "mem_size_mib": 128}})
    )
    _, console = await run_below(address, str(assets.firecracker), "--no-api", "--config-file", str(machine))
    assert kvm.REACHED.decode() in console

    # Its kernel was told the frequency of the TSC: two boots must agree on it, or snapshots of the one are refused.
    tsc_khz = emulated_host.tsc_khz(assets.host_init)
    with pytest.raises(MachineFailed, match="TSC cannot be measured"):
        emulated_host.tsc_khz(Path("/bin/false"))
    _, said = await run_below(address, "/bin/sh", "-c", "cat /proc/cmdline; dmesg")
    told = re.search(r"tsc_early_khz=(\d+)", said)
    believed = re.findall(r"tsc: Detected ([\d.]+) MHz", said)
    assert told and believed
    for khz in (int(told[1]), float(believed[-1]) * 1000):
        assert abs(khz - tsc_khz) < 25e-6 * tsc_khz, (khz, tsc_khz)

    # A VM is held open in there, or else the kernel would rewrite its scheduler for every first machine.
    assert "kvm-vcpu:0" in (await run_below(address, "/bin/sh", "-c", "ls -l /proc/[0-9]*/fd"))[1]

    # Its init starts the launcher again when that dies.
    first = below.ping(address)
    assert first is not None
    with contextlib.suppress(PerdureError):  # its own death is what the caller sees
        await run_below(address, "/bin/kill", "-9", str(first["pid"]))
    eventually(lambda: (below.ping(address) or first)["pid"] != first["pid"], "no new launcher")

    assert below.stop(shared_home)
    assert not below.stop(shared_home)
    assert not below.status(shared_home).running


async def test_where_no_card_can_be_made_a_forwarded_port_serves(
    own_home: Home, assets: Assets, emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "_TUN", "/dev/net/none")
    address = below.ensure(own_home, assets)
    assert address.tcp_host == "127.0.0.1"
    assert await run_below(address, "/bin/sh", "-c", "echo here") == (0, "here\n")
    assert below.status(own_home).address == address


def test_a_starter_that_is_killed_leaves_nothing_that_stop_does_not_find(own_home: Home, assets: Assets) -> None:
    program = (
        "from perdure.host import assets, below, kvm; from perdure.host.paths import Home; home = Home.find(); "
        "kvm.boots = lambda *_: False; below.ensure(home, assets.ensure(home))"
    )
    environment = {**os.environ, "PERDURE_HOME": str(own_home.root), "PERDURE_CACHE": str(own_home.cache)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as starter:
        eventually(lambda: (own_home.host / "qemu.process").exists(), "QEMU was not started")
        starter.kill()
    assert below.status(own_home).running
    assert not below.status(own_home).answers
    assert below.stop(own_home)
    assert processes_of(own_home) == []


def test_one_of_another_version_is_started_again(
    own_home: Home, assets: Assets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm, "boots", lambda *_: True)
    address = below.ensure(own_home, assets)
    assert not address.emulated
    assert below.ensure(own_home, assets) == address
    pid = below.status(own_home, assets).pids["launcher"]
    monkeypatch.setattr(below, "_fingerprint", lambda _: "another version")
    assert below.status(own_home, assets).outdated
    below.ensure(own_home, assets)
    status = below.status(own_home, assets)
    assert status.answers
    assert not status.outdated
    assert status.pids["launcher"] != pid


def test_one_whose_kernel_hangs_is_started_once_more(
    own_home: Home,
    assets: Assets,
    emulated: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real, tried = shutil.which(emulated_host.QEMU), tmp_path / "tried"
    stand_in = tmp_path / "bin" / emulated_host.QEMU
    stand_in.parent.mkdir()
    # the first one lives and says nothing; the second one is QEMU
    stand_in.write_text(f'#!/bin/sh\nmkdir "{tried}" 2>/dev/null && exec sleep 1000\nexec {real} "$@"\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(emulated_host, "HUNG_AFTER_S", 1.0)
    below.ensure(own_home, assets)
    assert below.status(own_home).answers
    assert "does not start init within 1 s, in which none of its threads worked" in caplog.text
    assert "it is started once more" in caplog.text


async def test_a_keeper_on_this_machine_itself_outlives_its_launcher(
    own_home: Home, assets: Assets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm, "boots", lambda *_: True)
    stands = ground.Ground(own_home)
    keeper = await (await stands.launcher()).spawn("0123456789ab")
    pid = below.status(own_home).pids["launcher"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: "launcher" not in below.status(own_home).pids, "the launcher does not end")
    for again in (stands, ground.Ground(own_home)):  # in the same node, and in the next one
        launcher = await again.living_launcher()
        assert launcher is not None
        assert [(kept.sandbox_id, kept.alive) for kept in await launcher.list()] == [("0123456789ab", True)]
    assert below.status(own_home).pids["launcher"] != pid
    assert (await keeper.request("stat"))["state"] == "empty"
    keeper.close()
