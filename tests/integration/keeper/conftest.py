"""A launcher on this machine, and a program that stands for Firecracker where only the supervision of processes counts.

The stand-in (``firecracker.c``) serves an HTTP socket and agrees to everything, so that what is proved is who kills,
reaps and cleans up. It runs in a jail that the real jailer makes. What Firecracker really does is proved in tests/vm.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from perdure.errors import Unavailable
from perdure.execution.machine.remote import Keeper, Launcher
from perdure.host.paths import Home
from perdure.model import LauncherAddress
from perdure.testing import processes

TOKEN = "00112233445566778899aabbccddeeff"
DEADLINE_S = 20.0


@dataclass
class Host:
    """What a test starts and looks at. ``below`` is the below-line folder."""

    folder: Path
    below: Path
    firecracker: Path
    address: LauncherAddress
    pager: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """A launcher that listens."""
        argv = [sys.executable, "-m", "perdure.keeper.launcher", "--unix", self.address.unix_path]
        argv += ["--token-file", str(self.folder / "token"), "--below", str(self.below), *more]
        with (self.folder / "launcher.log").open("ab") as log:
            launcher = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(launcher)
        return launcher

    def log(self) -> str:
        return (self.folder / "launcher.log").read_text()

    def restore(self, **more: object) -> dict[str, object]:
        """Parameters of a restore that the stand-in agrees to. ``state``: a word for it (``firecracker.c``)."""
        (self.folder / "memory").touch()
        state = self.folder / f"state-{more.pop('state', '')}"
        state.write_text(state.name)
        return {
            "firecracker": str(self.firecracker),
            "pager": str(self.pager),
            "state": str(state),
            "memory": {"kind": "file", "path": str(self.folder / "memory")},
            "drives": {},
            **more,
        }


async def connected(host: Host) -> Launcher:
    """A launcher that answers, started a moment ago."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return await Launcher.connect(host.address)
        except Unavailable:
            assert time.monotonic() < deadline, host.log()
            await asyncio.sleep(0.01)


async def closed(keeper: Keeper) -> None:
    """Wait until a keeper has hung up."""
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.shield(keeper.closed)


async def ended(keeper: Keeper) -> None:
    """Tell a keeper to end, and wait until it has hung up: a connection that is left open fails a later test."""
    await keeper.request("end", timeout_s=DEADLINE_S)
    await closed(keeper)


async def gone(pid: int) -> bool:
    """Wait until a process that is not our child has ended; False when it has not in time."""
    return await asyncio.to_thread(is_gone, pid)


def is_gone(pid: int) -> bool:
    """The same, for code that is not async."""
    return processes.ends(pid, DEADLINE_S)


def processes_under(folder: Path) -> list[int]:
    """Every process whose working directory is in a folder, and its children: the keepers, pagers and jailed
    Firecrackers of a test, but not what only holds their namespace."""
    found, children = [], []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
            elif "python" not in (process / "exe").readlink().name:
                children.append((int(process.name), parent_of(int(process.name))))
        except OSError:
            continue  # it has just ended
    return found + [pid for pid, parent in children if parent in found]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def jails_under(folder: Path) -> list[Path]:
    """The folders that Firecrackers run in, seen through their keepers, whose working directories are in ``folder``."""
    below = next(path for path in (folder, *folder.parents) if (path / "launcher.lock").exists())
    found: list[Path] = []
    for pid in processes_under(folder):
        with contextlib.suppress(OSError):  # it has just ended
            if "python" in Path(f"/proc/{pid}/exe").readlink().name:
                found += Path(f"/proc/{pid}/root{below}/jail").glob("*/machine/root")
    return found


def real_jailer() -> Path:
    """That of the assets of this machine."""
    found = sorted((Home.find().cache / "firecracker").glob("*/jailer"))
    if not found:
        pytest.skip("the jailer is not here: fcrun setup")
    return found[-1]


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("stand-in") / "firecracker"
    source = Path(__file__).with_name("firecracker.c")
    subprocess.run(["gcc", "-O1", "-static", "-o", program, source], check=True)
    return program


@pytest.fixture
def host(pager_program: Path, stand_in: Path) -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="perdure-keeper-", dir="/dev/shm"))
    (folder / "token").write_text(TOKEN)
    (folder / "jailer").symlink_to(real_jailer())
    firecracker = folder / "firecracker"
    shutil.copy(stand_in, firecracker)
    host = Host(
        folder, folder / "below", firecracker, LauncherAddress(TOKEN, unix_path=str(folder / "l.sock")), pager_program
    )
    try:
        yield host
        left = processes_under(host.below / "m")
        assert not [pid for pid in left if not is_gone(pid)], f"processes left behind: {left}\n{host.log()}"
        for launcher in host.processes:
            launcher.kill()
        left = processes_under(host.below)
        assert not [pid for pid in left if not is_gone(pid)], f"spares left behind: {left}\n{host.log()}"
    finally:
        for pid in processes_under(host.below):
            os.kill(pid, signal.SIGKILL)
        for launcher in host.processes:
            launcher.kill()
            launcher.wait()
        shutil.rmtree(folder)
