"""A launcher on this machine, and a program that stands for Firecracker where only the supervision of processes counts.

The stand-in serves an HTTP socket and agrees to everything, so that what is proved is who kills, reaps and cleans up.
What Firecracker really does is proved in tests/vm.
"""

from __future__ import annotations

import asyncio
import os
import select
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
from perdure.model import LauncherAddress

TOKEN = "00112233445566778899aabbccddeeff"
DEADLINE_S = 20.0

STAND_IN = f"""#!{sys.executable} -S
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind("api.sock")
listener.listen(1)
print("stand-in speaks", flush=True)
connection, _ = listener.accept()
data = b""
while True:
    more = connection.recv(65536)
    if not more:
        break
    data += more
    while b"\\r\\n\\r\\n" in data:
        head, _, rest = data.partition(b"\\r\\n\\r\\n")
        length = int(head.lower().split(b"content-length:")[1].split()[0])
        if len(rest) < length:
            break
        body, data = rest[:length], rest[length:]
        if b"wait-here" in body:
            open("wait").read()
        if b"refuse-me" in body:
            connection.sendall(b"HTTP/1.1 400 Bad\\r\\nContent-Length: 23\\r\\n\\r\\n" + b'{{"fault_message":"no!"}}')
        else:
            connection.sendall(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
        if b"talk-much" in body:
            for number in range(20000):
                print("line", number, "x" * 100, flush=True)
        if b"exit-zero" in body:
            sys.exit(0)
while True:
    os.read(0, 1) or __import__("signal").pause()
"""


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
        """Parameters of a restore that the stand-in agrees to."""
        (self.folder / "memory").touch()
        return {
            "firecracker": str(self.firecracker),
            "pager": str(self.pager),
            "state": str(self.folder / "state"),
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
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], DEADLINE_S)[0])
    finally:
        os.close(pidfd)


def processes_under(folder: Path) -> list[int]:
    """Every process whose working directory is in a folder: the keepers, Firecrackers and pagers of a test."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
        except OSError:
            continue  # it has just ended
    return found


@pytest.fixture
def host(pager_program: Path) -> Iterator[Host]:
    folder = Path(tempfile.mkdtemp(prefix="perdure-keeper-", dir="/dev/shm"))
    (folder / "token").write_text(TOKEN)
    stand_in = folder / "firecracker"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    host = Host(
        folder, folder / "below", stand_in, LauncherAddress(TOKEN, unix_path=str(folder / "l.sock")), pager_program
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
