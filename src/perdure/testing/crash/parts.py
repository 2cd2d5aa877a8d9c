"""The parts of a run in a microVM: who can be killed, and what may not be left of them. Of one home."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence

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
        if part in pids:
            return await self._run("kill", "-9", str(pids[part])) == 0
        return await self.kill_next(part, [])

    async def kill_wished(self, wishes: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
        """The first of them that is there: a part, of a sandbox. None: there was none, or nobody below the line answers
        just now, on a busy machine: whoever waits for a machine there says so."""
        said, names = bytearray(), {part: PROGRAMS[part] or part for part in BELOW}
        words = (str(self._home.below_line_folder / "m"), *(f"{names[part]}/{sandbox}" for part, sandbox in wishes))
        try:
            if await self._run(*belowline.KILL_WISHED, *words, output=said):
                return None
        except Unavailable:
            return None
        name, _, sandbox = said.decode().strip().partition("/")
        return next(part for part in BELOW if names[part] == name), sandbox

    async def kill_next(self, part: str, known: list[int]) -> bool:
        """The first that is born and is not one of those. False: there was none for long."""
        words = (str(self._home.below_line_folder / "m"), PROGRAMS[part], " ".join(map(str, known)), str(LOOKS))
        return await self._run(*belowline.KILL_NEXT, *words) == 0

    async def living(self) -> list[int]:
        """The pids of all parts below the line."""
        return [member.pid for member in await self._members()]

    async def runs(self) -> dict[str, str]:
        """Of which run each sandbox is, by the records: also while no node lives, and while a machine is being made."""
        return await asyncio.to_thread(self._runs)

    def _runs(self) -> dict[str, str]:
        found = {}
        for folder in self._home.sandboxes.iterdir():
            with contextlib.suppress(PerdureError):  # it is just being made, or removed
                found[folder.name] = Folder(folder).load().spec.labels.get(LABEL, "")
        return found

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
