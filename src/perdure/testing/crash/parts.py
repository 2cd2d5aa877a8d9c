"""The parts of a run in a microVM: who can be killed, and what may not be left of them. Of one home."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

from perdure.client.node import NodeClient
from perdure.errors import NotFound, PerdureError, Unavailable
from perdure.execution.machine.remote import Launcher
from perdure.execution.sandboxes.record import Folder
from perdure.host import below
from perdure.host.paths import Home
from perdure.model import SandboxInfo
from perdure.server.machines import LABEL
from perdure.testing import belowline

BELOW = {"VM": "firecracker_pid", "keeper": "keeper_pid", "pager": "pager_pid"}  # as the node tells their pids
PARTS = (*BELOW, "node", "server")
PROGRAMS = {"VM": "firecracker", "keeper": "", "pager": "pager"}
LOOKS = 2000  # until one is there: half a minute, or some where processors are emulated
GONE_S = 120.0  # within which nothing is left: removals are slow where processors are emulated, and who removes dies
LOOK_S = 0.05


class Parts:
    def __init__(self, home: Home) -> None:
        self._home = home
        self._node = NodeClient(home)

    async def sandboxes(self, run: str = "") -> list[SandboxInfo]:
        """Those of a run, or of any."""
        found = await asyncio.to_thread(self._node.list)
        return [info for info in found if run in ("", info.spec.labels.get(LABEL))]

    async def kill_node(self) -> bool:
        """False: none answers."""
        try:
            pid = int((await asyncio.to_thread(self._node.system))["pid"])
        except Unavailable:
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    async def pids(self, run: str) -> dict[str, int]:
        """Of the parts below the line, as the node knows them."""
        machines = [info.machine for info in await self.sandboxes(run) if info.machine]
        return {part: int(machines[0][name]) for part, name in BELOW.items() if machines and machines[0].get(name)}

    async def kill_below(self, part: str, pids: dict[str, int]) -> bool:
        """kill -9: who is known, or else the first of this home that is that part. False: there was none."""
        return await (self.kill_pid(pids[part]) if part in pids else self.kill_next(part, []))

    async def kill_pid(self, pid: int) -> bool:
        """Below the line."""
        return await self._run("kill", "-9", str(pid)) == 0

    async def kill_next(self, part: str, known: list[int]) -> bool:
        """The first that is born and is not one of those. False: there was none for long."""
        words = (str(self._home.below_line_folder / "m"), PROGRAMS[part], " ".join(map(str, known)), str(LOOKS))
        return await self._run(*belowline.KILL_NEXT, *words) == 0

    async def living(self) -> list[int]:
        """The pids of all parts below the line."""
        return [member.pid for member in await self._members()]

    async def of_runs(self) -> dict[str, list[belowline.Member]]:
        """All parts below the line, by run: also while no node lives."""
        found: dict[str, list[belowline.Member]] = {}
        for member in await self._members():
            found.setdefault(await asyncio.to_thread(self._run_of, member.sandbox), []).append(member)
        return found

    def _run_of(self, sandbox: str) -> str:
        """ "": its folder is gone already."""
        try:
            return Folder(self._home.sandboxes / sandbox).load().spec.labels.get(LABEL, "")
        except (PerdureError, OSError):
            return ""

    async def _members(self) -> list[belowline.Member]:
        said = bytearray()
        await self._run(*belowline.LOOK, output=said)
        return belowline.members(self._home, said.decode(errors="replace"))

    async def _run(self, *words: str, output: bytearray | None = None) -> int:
        address = (await asyncio.to_thread(below.status, self._home)).address
        if address is None:
            return 1
        said = bytearray() if output is None else output
        return await Launcher(address).run(list(words), output=said.extend)

    async def left(self, run: str = "") -> list[str]:
        """What is still there of machines when it may not be any more, in words. Of a run only what the node tells:
        everything else is of no run, and the others' come and go."""
        deadline = time.monotonic() + GONE_S
        while found := await self._left(run):
            if time.monotonic() > deadline:
                return found
            await asyncio.sleep(LOOK_S)
        return []

    async def _left(self, run: str) -> list[str]:
        with contextlib.suppress(Unavailable):  # the node was killed just now, and is started again
            found = [f"sandbox {info.name} ({info.state}) is left" for info in await self.sandboxes(run)]
            if run:
                return found
            found += [f"snapshot {one.digest} is left" for one in await asyncio.to_thread(self._node.store.list)]
            found += [f"the folder {path} is left" for path in self._home.sandboxes.iterdir()]
            if found:
                return found
            said = bytearray()
            await self._run("ls", str(self._home.below_line_folder / "m"), output=said)
            found += [f"the machine folder {name} is left" for name in said.decode().split()]
            return found + [f"a {one.part} is left: {one.pid}, of {one.sandbox}" for one in await self._members()]
        return ["the node does not answer"]

    async def clear(self, run: str = "") -> None:
        """Remove what a life that went wrong has left; or all lives."""
        with contextlib.suppress(PerdureError):
            for info in await self.sandboxes(run):
                with contextlib.suppress(NotFound):
                    await asyncio.to_thread(self._node.remove, info.id, force=True)
