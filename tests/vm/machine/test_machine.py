"""The real Firecracker under a real keeper: boots, chains of snapshots, what a failure leaves, causes of death."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import InvalidValue, MachineFailed
from perdure.execution.machine.configuration import BOOT_ARGS
from perdure.execution.machine.remote import Keeper, Launcher
from perdure.formats import capturefile, memorymap
from perdure.formats.blockmap import BLOCK, LAYER, ZERO
from perdure.host import cpio
from perdure.host.assets import Assets
from perdure.host.paths import Home
from perdure.model import LauncherAddress

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]
DEADLINE_S = 120.0
MEMORY_MIB = 128
SANDBOX = "vm-test"
DIGEST = bytes(range(32))  # of the template, where a test has one


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

    async def restore(self, keeper: Keeper, state: Path, memory: Path | dict[str, str]) -> dict[str, Any]:
        return await keeper.request(
            "restore",
            firecracker=str(self.assets.firecracker),
            pager=str(self.assets.pager),
            state=str(state),
            memory={"kind": "file", "path": str(memory)} if isinstance(memory, Path) else memory,
            drives={},
            timeout_s=DEADLINE_S,
        )

    async def start(self, base: Base) -> Keeper:
        """A machine that ticks, without a boot."""
        keeper = await self.launcher.spawn(SANDBOX)
        await self.restore(keeper, base.state, base.memory)
        await self.ticks(1)
        return keeper

    async def capture(
        self, keeper: Keeper, kind: str, name: str, *, end: bool = False, still: bool = False
    ) -> tuple[dict[str, Any], Path]:
        """``still``: the machine stays paused."""
        folder = self.folder / name
        folder.mkdir()
        captured = await self.request_capture(keeper, kind)
        if not end and not still:
            await keeper.request("continue", timeout_s=DEADLINE_S)
        collected = await keeper.request("collect", folder=str(folder), end=end, timeout_s=DEADLINE_S)
        return captured | collected, folder

    async def request_capture(self, keeper: Keeper, kind: str, collector: str = "") -> dict[str, Any]:
        program = collector or str(self.assets.collector)
        return await keeper.request("capture", kind=kind, collector=program, timeout_s=DEADLINE_S)

    async def ticks(self, least: int = 1) -> int:
        """Wait for this many more ticks; the number of the newest. Each must say that its memory is whole."""
        pattern = "tick [0-9]+ (ok|BROKEN)"  # after half a line, where a machine went back to a snapshot within one
        wanted = len((await self._said(f"grep -aE '{pattern}' {self.console}")).splitlines()) + least
        # one program that waits, below the line too: many that look would take the guest's processor
        waiting = f"(tail -n +1 -F {self.console} 2>/dev/null &) | grep -aE -m {wanted} '{pattern}'"
        said = (await self._said(waiting)).splitlines()
        assert len(said) == wanted
        assert [line for line in said if "BROKEN" in line] == []
        return int(re.findall("tick ([0-9]+) ok", said[-1])[-1])

    async def _said(self, script: str) -> str:
        output: list[bytes] = []
        await self.launcher.run(["sh", "-c", script], output=output.append, timeout_s=DEADLINE_S)
        return b"".join(output).decode().replace("\r", "")

    async def lives(self, pid: int) -> bool:
        return await self.launcher.run(["kill", "-0", str(pid)]) == 0


@pytest.fixture(scope="session")
def ticker(machine_home: Home) -> Path:
    """The initramfs of the guest."""
    program = machine_home.root / "ticker"
    source = Path(__file__).with_name("ticker.c")
    subprocess.run(["gcc", "-std=gnu11", "-Os", "-s", "-static", "-o", str(program), str(source)], check=True)
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


@dataclass(frozen=True)
class Base:
    """A snapshot of a ticking machine, all of its memory in one file."""

    state: Path
    memory: Path


@pytest.fixture
async def base(bench: Bench, machine_home: Home) -> Base:
    """Made by the first test that wants it: most tests need a machine that ticks, not a boot."""
    folder = machine_home.root / f"ticker-base-{os.getpid()}"
    if not folder.exists():
        for old in machine_home.root.glob("ticker-base-*"):
            shutil.rmtree(old)
        keeper = await bench.boot()
        await bench.ticks(1)
        _, captured = await bench.capture(keeper, "full", "base", end=True)
        # a folder that the kernel below the line has not looked into: it remembers for a while which file a name was
        making = folder.with_suffix(".new")
        making.mkdir()
        merged(None, captured / "memory", making / "memory")
        shutil.copy(captured / "state", making / "state")
        making.rename(folder)
        await leave_nothing(bench.launcher)
    return Base(folder / "state", folder / "memory")


async def leave_nothing(launcher: Launcher) -> None:
    for kept in await launcher.list():
        if kept.sandbox_id == SANDBOX and kept.alive:
            keeper = await launcher.attach(SANDBOX)
            await keeper.request("end", timeout_s=DEADLINE_S)
            await asyncio.wait_for(asyncio.shield(keeper.closed), DEADLINE_S)
        elif kept.sandbox_id == SANDBOX:
            await launcher.forget(SANDBOX)


def merged(base: Path | None, difference: Path, target: Path, template: Path | None = None) -> Path:
    """A raw memory file: the base (or zeros) with what was captured laid over it."""
    captured = capturefile.decode(difference.read_bytes())
    if base is not None:
        shutil.copy(base, target)
    with target.open("r+b" if base else "xb") as into:
        into.truncate(captured.blocks * BLOCK)
        for run in captured.runs:
            into.seek(run.first * BLOCK)
            if run.source == LAYER:
                into.write(captured.content(run))
            elif run.source == ZERO:
                into.write(bytes(run.length * BLOCK))
            else:
                assert template is not None and captured.base == DIGEST
                with template.open("rb") as under:
                    under.seek(run.first * BLOCK)
                    into.write(under.read(run.length * BLOCK))
    return target


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
    _, first = await bench.capture(keeper, "diff", "first-diff", still=True)
    full, base = await bench.capture(keeper, "full", "full", still=True)
    raw = merged(None, base / "memory", bench.folder / "raw")
    assert full["kind"] == "full" and raw.stat().st_size == MEMORY_MIB << 20
    # a diff of everything since the boot is the whole memory
    assert merged(None, first / "memory", bench.folder / "memory-0").read_bytes() == raw.read_bytes()
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
    merged(raw, between / "memory", bench.folder / "memory-2")
    merged(bench.folder / "memory-2", last / "memory", bench.folder / "memory-3")
    answer = await bench.restore(keeper, last / "state", bench.folder / "memory-3")
    assert answer["backend"] == "file" and answer["load_s"] > 0
    newest = await bench.ticks(2)
    assert newest > tick
    again, _ = await bench.capture(keeper, "diff", "again", end=True)
    assert again["kind"] == "diff" and again["bytes"] < full["bytes"] / 3
    template = {"kind": "file", "path": str(raw), "name": "ticker-template", "digest": DIGEST.hex()}
    await bench.restore(keeper, base / "state", template)  # back in time
    await bench.ticks(2)
    beyond, over = await bench.capture(keeper, "full", "over-template", end=True)
    assert beyond["bytes"] < full["bytes"] / 3  # what is the template's is only named
    merged(None, over / "memory", bench.folder / "memory-4", raw)
    await bench.restore(keeper, over / "state", bench.folder / "memory-4")
    await bench.ticks(2)
    await keeper.request("end")
    await asyncio.wait_for(asyncio.shield(keeper.closed), DEADLINE_S)


async def test_a_capture_that_cannot_be_collected_leaves_the_machine_as_it_is(bench: Bench, base: Base) -> None:
    keeper = await bench.start(base)
    _, folder = await bench.capture(keeper, "diff", "first")
    await bench.request_capture(keeper, "diff")
    with pytest.raises(MachineFailed, match="could not be written to /nowhere"):
        await keeper.request("collect", folder="/nowhere", end=True, timeout_s=DEADLINE_S)
    assert (await keeper.request("stat"))["state"] == "paused"
    await keeper.request("continue", timeout_s=DEADLINE_S)
    await bench.ticks(1)
    await bench.request_capture(keeper, "diff")
    await keeper.request("continue", timeout_s=DEADLINE_S)
    with pytest.raises(MachineFailed, match="File exists"):  # it could back a machine that runs
        await keeper.request("collect", folder=str(folder), timeout_s=DEADLINE_S)
    with pytest.raises(InvalidValue, match="no capture to collect"):
        await keeper.request("collect", folder=str(folder), timeout_s=DEADLINE_S)
    await bench.ticks(1)
    lost, folder = await bench.capture(keeper, "diff", "next", end=True)
    assert lost["kind"] == "full"  # that diff was lost, so everything is here
    memory = merged(None, folder / "memory", bench.folder / "everything")
    await bench.restore(keeper, folder / "state", memory)
    await bench.ticks(2)


async def test_a_collector_that_is_killed_or_is_not_there_costs_no_memory(bench: Bench, base: Base) -> None:
    keeper = await bench.start(base)
    with pytest.raises(MachineFailed, match="collector /nowhere/collector cannot be started"):
        await bench.request_capture(keeper, "diff", "/nowhere/collector")
    assert (await keeper.request("stat"))["state"] == "running"
    await bench.ticks(1)
    killed = bench.folder / "killed"
    killed.mkdir()
    stand_in = bench.folder / "collector"
    stand_in.write_text("#!/bin/sh\nkill -9 $$\n")
    stand_in.chmod(0o755)
    assert (await bench.request_capture(keeper, "diff", str(stand_in)))["kind"] == "full"
    await keeper.request("continue", timeout_s=DEADLINE_S)
    with pytest.raises(MachineFailed, match="collector was killed by signal 9"):
        await keeper.request("collect", folder=str(killed), timeout_s=DEADLINE_S)
    assert list(killed.iterdir()) == []
    await bench.ticks(1)
    lost, folder = await bench.capture(keeper, "diff", "next", end=True)
    assert lost["kind"] == "full"
    await bench.restore(keeper, folder / "state", merged(None, folder / "memory", bench.folder / "everything"))
    await bench.ticks(2)


async def test_a_restore_that_fails_leaves_nothing(bench: Bench, base: Base) -> None:
    keeper = await bench.launcher.spawn(SANDBOX)
    broken = bench.folder / "broken-state"
    data = bytearray(base.state.read_bytes())
    data[len(data) // 2] ^= 0xFF
    broken.write_bytes(data)
    short = bench.folder / "short-memory"
    short.write_bytes(b"x" * 4096)
    for state, memory in [
        (broken, base.memory),
        (base.state, Path("/nowhere")),
        (base.state, short),
        (Path("/nowhere"), base.memory),
    ]:
        with pytest.raises(MachineFailed) as refused:
            await bench.restore(keeper, state, memory)
        assert refused.value.message
        stat = await keeper.request("stat")
        assert (stat["state"], stat["firecracker_pid"], stat["pager_pid"]) == ("empty", 0, 0)
    await bench.restore(keeper, base.state, base.memory)
    await bench.ticks(2)


async def test_a_machine_on_its_pager(bench: Bench, base: Base) -> None:
    """The smallest map there is: all of memory from the raw file. Killed, its pager takes the machine with it."""
    blocks = base.memory.stat().st_size // 4096
    column, wide = memorymap.column, memorymap.wide_column
    whole = memorymap.MemoryMap(
        blocks, str(base.memory), [], [], column([0]), column([memorymap.TEMPLATE]), column([0]), column(), wide(),
        column(), column(), column(), column(), column(), column([0]), column(), column(),
    )  # fmt: skip
    path = bench.folder / "memory.map"
    path.write_bytes(memorymap.encode(whole))
    keeper = await bench.launcher.spawn(SANDBOX)
    answer = await bench.restore(keeper, base.state, {"kind": "layers", "map": str(path)})
    assert answer["backend"] == "uffd"
    await bench.ticks(2)
    stat = await keeper.request("stat")
    assert stat["pager"]["faults"] > 0
    captured, difference = await bench.capture(keeper, "diff", "from-pager")
    assert captured["kind"] == "diff" and captured["pager"]["working_set"]
    merged(base.memory, difference / "memory", bench.folder / "merged")
    await bench.ticks(1)
    assert await bench.launcher.run(["kill", "-9", str(stat["pager_pid"])]) == 0
    event = await exited(keeper)
    assert event["cause"] == "pager-died" and "signal 9" in event["detail"]
    assert not await bench.lives(stat["firecracker_pid"])
    await keeper.request("end")
    keeper = await bench.launcher.spawn(SANDBOX)
    await bench.restore(keeper, difference / "state", bench.folder / "merged")
    await bench.ticks(2)


async def test_why_machines_end(bench: Bench, base: Base) -> None:
    keeper = await bench.boot(args="ticker_exit=2")
    event = await exited(keeper)
    assert event["cause"] == "machine-exited"
    await keeper.request("end")

    keeper = await bench.start(base)
    pid = (await keeper.request("stat"))["firecracker_pid"]
    assert await bench.launcher.run(["kill", "-9", str(pid)]) == 0
    event = await exited(keeper)
    assert event["cause"] == "machine-died" and "signal 9" in event["detail"] and "tick" in event["detail"]
    await keeper.request("end")

    keeper = await bench.start(base)
    stat = await keeper.request("stat")
    assert await bench.launcher.run(["kill", "-9", str(stat["pid"])]) == 0
    await asyncio.wait_for(asyncio.shield(keeper.closed), DEADLINE_S)
    async with asyncio.timeout(DEADLINE_S):
        while await bench.lives(stat["firecracker_pid"]):
            pass
    kept = {each.sandbox_id: each for each in await bench.launcher.list()}[SANDBOX]
    assert not kept.alive and kept.exit["cause"] == "keeper-died"
