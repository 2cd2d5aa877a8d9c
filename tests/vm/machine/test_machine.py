"""The real Firecracker under a real keeper: boots, chains of snapshots, what a failure leaves, causes of death."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import MachineFailed
from perdure.execution.machine.configuration import BOOT_ARGS
from perdure.execution.machine.remote import Keeper, Launcher
from perdure.host import cpio
from perdure.host.assets import Assets
from perdure.host.paths import Home
from perdure.linux import sparse
from perdure.model import LauncherAddress

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]
DEADLINE_S = 120.0
MEMORY_MIB = 128
SANDBOX = "vm-test"


@dataclass
class Bench:
    """One sandbox's keeper, and the files of a test in the shared home."""

    launcher: Launcher
    assets: Assets
    console: Path  # below the line
    ticker: Path
    folder: Path

    async def boot(self, *, args: str = "") -> Keeper:
        keeper = await self.launcher.spawn(SANDBOX)
        await keeper.request(
            "boot",
            firecracker=str(self.assets.firecracker),
            kernel=str(self.assets.vmlinux),
            initrd=str(self.ticker),
            boot_args=f"{BOOT_ARGS} {args}".strip(),
            vcpus=1,
            memory_mib=MEMORY_MIB,
            drives=[],
            timeout_s=DEADLINE_S,
        )
        return keeper

    async def restore(self, keeper: Keeper, state: Path, memory: Path, **more: str) -> dict[str, Any]:
        return await keeper.request(
            "restore",
            firecracker=str(self.assets.firecracker),
            state=str(state),
            memory={"kind": "file", "path": str(memory), **more},
            drives={},
            timeout_s=DEADLINE_S,
        )

    async def capture(self, keeper: Keeper, kind: str, name: str, *, end: bool = False) -> tuple[dict[str, Any], Path]:
        folder = self.folder / name
        folder.mkdir()
        answer = await keeper.request("capture", kind=kind, folder=str(folder), end=end, timeout_s=DEADLINE_S)
        return answer, folder

    async def ticks(self, least: int = 1) -> int:
        """Wait for this many more ticks; the number of the newest. Each must say that its memory is whole."""
        before = await self._said()
        wanted = len(before) + least
        async with asyncio.timeout(DEADLINE_S):
            while len(said := await self._said()) < wanted:  # each look is a program run below the line
                pass
        assert all(words[2] == "ok" for words in said), said
        return int(said[-1][1])

    async def _said(self) -> list[list[str]]:
        output: list[bytes] = []
        await self.launcher.run(["grep", "-ah", "^tick .*\r*$", str(self.console)], output=output.append)
        lines = b"".join(output).decode().replace("\r", "").splitlines()
        return [line.split() for line in lines if len(line.split()) == 3]

    async def lives(self, pid: int) -> bool:
        return await self.launcher.run(["kill", "-0", str(pid)]) == 0


@pytest.fixture(scope="session")
def ticker(machine_home: Home) -> Path:
    """The initramfs of the guest."""
    program = machine_home.root / "ticker"
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl", "-Os", "-s", "-static"]
    subprocess.run([*command, "-o", str(program), str(Path(__file__).with_name("ticker.c"))], check=True)
    archive = machine_home.root / "ticker.cpio"
    archive.write_bytes(cpio.archive([cpio.Entry.file("init", program.read_bytes(), 0o755)]))
    return archive


@pytest.fixture
async def bench(
    machine_home: Home, assets: Assets, launcher_address: LauncherAddress, ticker: Path
) -> AsyncIterator[Bench]:
    launcher = await Launcher.connect(launcher_address)
    folder = machine_home.root / "machine-test"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    console = machine_home.below_line_folder / "m" / SANDBOX / "console.log"
    try:
        yield Bench(launcher, assets, console, ticker, folder)
    finally:
        await leave_nothing(launcher)
        shutil.rmtree(folder)


async def leave_nothing(launcher: Launcher) -> None:
    for kept in await launcher.list():
        if kept.sandbox_id == SANDBOX and kept.alive:
            keeper = await launcher.attach(SANDBOX)
            await keeper.request("end", timeout_s=DEADLINE_S)
            await asyncio.wait_for(asyncio.shield(keeper.closed), DEADLINE_S)
        elif kept.sandbox_id == SANDBOX:
            await launcher.forget(SANDBOX)


def merged(base: Path, difference: Path, target: Path) -> None:
    """A raw memory file: the base with the difference's data laid over it."""
    shutil.copy(base, target)
    with difference.open("rb") as source, target.open("r+b") as into:
        for at, length in sparse.extents(source.fileno()):
            os.pwrite(into.fileno(), os.pread(source.fileno(), length, at), at)


async def exited(keeper: Keeper) -> dict[str, Any]:
    event: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    keeper.listen(event.set_result)
    async with asyncio.timeout(DEADLINE_S):
        return await event


async def test_a_chain_of_snapshots_keeps_every_word_of_memory(bench: Bench) -> None:
    keeper = await bench.boot()
    await bench.ticks(2)
    firecracker = (await keeper.request("stat"))["firecracker_pid"]
    await keeper.request("pause")
    _, first = await bench.capture(keeper, "diff", "first-diff")
    full, base = await bench.capture(keeper, "full", "full")
    assert full["kind"] == "full" and (base / "memory").stat().st_size == MEMORY_MIB << 20
    # a diff of everything since the boot is the whole memory
    assert (first / "memory").read_bytes() == (base / "memory").read_bytes()
    assert full["bytes"] == (base / "memory").stat().st_blocks * 512 + (base / "state").stat().st_size
    assert full["bytes"] < 80 << 20  # blocks of zeros are left out
    await keeper.request("continue")
    tick = await bench.ticks(2)
    live, between = await bench.capture(keeper, "diff", "live")  # it goes on at once
    assert live["kind"] == "diff" and live["bytes"] < full["bytes"] / 3
    assert await bench.ticks(1) > tick
    _, last = await bench.capture(keeper, "diff", "last", end=True)
    stat = await keeper.request("stat")
    assert stat["state"] == "empty" and not await bench.lives(firecracker)

    # restored by itself and through the chain, twice, in the same keeper
    merged(base / "memory", between / "memory", bench.folder / "memory-2")
    merged(bench.folder / "memory-2", last / "memory", bench.folder / "memory-3")
    answer = await bench.restore(keeper, last / "state", bench.folder / "memory-3")
    assert answer["backend"] == "file" and answer["load_s"] > 0
    newest = await bench.ticks(2)
    assert newest > tick
    again, _ = await bench.capture(keeper, "diff", "again", end=True)
    assert again["kind"] == "diff" and again["bytes"] < full["bytes"] / 3
    await bench.restore(keeper, base / "state", base / "memory", name="ticker-template")  # back in time
    await bench.ticks(2)
    await keeper.request("end")
    await asyncio.wait_for(asyncio.shield(keeper.closed), DEADLINE_S)


async def test_a_capture_that_fails_leaves_the_machine_running(bench: Bench) -> None:
    keeper = await bench.boot()
    await bench.ticks(1)
    _, base = await bench.capture(keeper, "full", "base")
    with pytest.raises(MachineFailed, match="could not be written to /nowhere"):
        await keeper.request("capture", kind="diff", folder="/nowhere", end=True, timeout_s=DEADLINE_S)
    assert (await keeper.request("stat"))["state"] == "running"
    await bench.ticks(1)
    with pytest.raises(MachineFailed, match="File exists"):  # it could back a machine that runs
        await keeper.request("capture", kind="full", folder=str(base), timeout_s=DEADLINE_S)
    await bench.ticks(1)
    lost, folder = await bench.capture(keeper, "diff", "next", end=True)
    assert lost["kind"] == "full"  # that diff was lost, so everything is here
    await bench.restore(keeper, folder / "state", folder / "memory")
    await bench.ticks(2)


async def test_a_restore_that_fails_leaves_nothing(bench: Bench) -> None:
    keeper = await bench.boot()
    await bench.ticks(1)
    _, base = await bench.capture(keeper, "full", "base", end=True)
    broken = bench.folder / "broken-state"
    data = bytearray((base / "state").read_bytes())
    data[len(data) // 2] ^= 0xFF
    broken.write_bytes(data)
    short = bench.folder / "short-memory"
    short.write_bytes(b"x" * 4096)
    for state, memory in [
        (broken, base / "memory"),
        (base / "state", Path("/nowhere")),
        (base / "state", short),
        (Path("/nowhere"), base / "memory"),
    ]:
        with pytest.raises(MachineFailed) as refused:
            await bench.restore(keeper, state, memory)
        assert refused.value.message
        stat = await keeper.request("stat")
        assert (stat["state"], stat["firecracker_pid"], stat["pager_pid"]) == ("empty", 0, 0)
    await bench.restore(keeper, base / "state", base / "memory")
    await bench.ticks(2)


async def test_why_machines_end(bench: Bench) -> None:
    keeper = await bench.boot(args="ticker_exit=2")
    event = await exited(keeper)
    assert event["cause"] == "machine-exited"
    await keeper.request("end")

    keeper = await bench.boot()
    await bench.ticks(1)
    pid = (await keeper.request("stat"))["firecracker_pid"]
    assert await bench.launcher.run(["kill", "-9", str(pid)]) == 0
    event = await exited(keeper)
    assert event["cause"] == "machine-died" and "signal 9" in event["detail"] and "tick" in event["detail"]
    await keeper.request("end")

    keeper = await bench.boot()
    await bench.ticks(1)
    stat = await keeper.request("stat")
    assert await bench.launcher.run(["kill", "-9", str(stat["pid"])]) == 0
    await asyncio.wait_for(asyncio.shield(keeper.closed), DEADLINE_S)
    async with asyncio.timeout(DEADLINE_S):
        while await bench.lives(stat["firecracker_pid"]):
            pass
    [kept] = await bench.launcher.list()
    assert not kept.alive and kept.exit["cause"] == "keeper-died"
