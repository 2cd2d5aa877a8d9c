"""Sandboxes whose machine is its disk alone: the use cases are the real ones, and what is below the line stands still.

A machine of these has its memory as its template left it, runs no guest, and writes to its disk when it is told to.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from perdure.errors import MachineFailed, NotFound
from perdure.execution.guest.session import Quiesced
from perdure.execution.images.library import ImageLibrary
from perdure.execution.sandboxes.ground import Ground
from perdure.execution.sandboxes.record import Folder, KeptSnapshot, Record
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.execution.snapshots import templates
from perdure.execution.snapshots.diskspace import space_checked
from perdure.execution.snapshots.store import Store
from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Snapshot
from perdure.host.paths import Home
from perdure.model import SandboxSpec, SandboxState
from perdure.testing.snapshots import BLOCKS, captured

Writes = dict[int, bytes]  # number of a block -> what is in it then
PARTS = SimpleNamespace(firecracker=Path("/firecracker"), pager=Path("/pager"), collector=Path("/collector"))


class StillMachine:
    """What ``Machine`` offers. ``writes``: what its guest writes to its disk as soon as it runs."""

    over = False
    fed: dict[str, int] = {}  # noqa: RUF012 - never changed
    keeper = None

    def __init__(self, writes: Writes) -> None:
        self._writes = writes
        self._paused = False

    async def request(self, op: str, **params: Any) -> dict[str, Any]:
        if op == "restore":
            write(Path(params["drives"]["overlay"]), self._writes)
        elif op in ("capture", "pause"):
            self._paused = True
        elif op == "continue":
            self._paused = False
        elif op == "collect":
            return self._collect(Path(params["folder"]))
        return {"state": "paused" if self._paused else "running", "pause_s": 0.0}

    def _collect(self, folder: Path) -> dict[str, Any]:
        with space_checked(f"a capture in {folder}"):
            (folder / "memory").write_bytes(captured({}, BLOCKS))
            (folder / "state").write_bytes(b"device state")
        return {"bytes": 0, "collect_s": 0.0}

    async def answered(self, work: Awaitable[Any], within_s: float) -> Any:
        return await work

    async def outlives(self, work: Awaitable[Any]) -> Any:
        return await work

    async def end(self) -> None:
        pass

    def leave(self) -> None:
        pass


class StillSession:
    """What ``GuestSession`` offers."""

    connected = True

    def __init__(self, main_id: str) -> None:
        self.processes = {main_id: SimpleNamespace(id=main_id, pid=1)}

    async def quiesce(self, budget_s: float) -> Quiesced:
        return Quiesced(frozen=True, synced=True, dropped=True)

    async def ready(self, timeout_s: float) -> None:
        pass

    async def wake(self, *values: object) -> None:
        pass

    def close(self, reason: BaseException) -> None:
        pass


class StillSandbox(Sandbox):
    """``writes``: of its next machines."""

    writes: Writes = {}  # noqa: RUF012 - replaced, never changed

    def new_session(self) -> Any:
        self.session = StillSession(self.main_id)  # type: ignore[assignment]  # it stands for a GuestSession
        self.session_parent = None
        return self.session

    async def spawn(self, launcher: Any, session: Any) -> Any:
        self.machine = StillMachine(self.writes)  # type: ignore[assignment]  # it stands for a Machine
        return self.machine

    def follow(self, process: Any) -> None:
        pass

    async def measure(self, *figures: Any) -> None:
        pass


class StillGround(Ground):
    """With one template, and nothing to start."""

    def __init__(self, home: Home, template: str) -> None:
        super().__init__(home)
        self._folder, self._name = home.templates, template

    async def assets(self, *values: Any) -> Any:
        return PARTS

    async def stand(self, *values: Any) -> Any:
        return None, templates.load(self._folder, self._name)


def write(path: Path, writes: Writes) -> None:
    """Raises MachineFailed where there is no room: a guest sees an I/O error then."""
    with path.open("r+b", buffering=0) as file:
        for number, data in writes.items():
            try:
                os.pwrite(file.fileno(), data, number * BLOCK)
            except OSError as error:
                raise MachineFailed(f"the guest cannot write: {error}") from error


def suspended(root: Path, sandbox_id: str, snapshots: list[Snapshot], image_digest: str) -> Folder:
    """The folder of a sandbox that has these snapshots, and no disk of its own."""
    folder = Folder(root / "sandboxes" / sandbox_id)
    folder.root.mkdir(parents=True)
    folder.save(
        Record(
            id=sandbox_id,
            name=sandbox_id[:3],
            spec=SandboxSpec(image="i"),
            image_digest=image_digest,
            created=1.0,
            state=SandboxState.SUSPENDED,
            parent=snapshots[-1].digest,
            snapshots=[KeptSnapshot(info=one.info()) for one in snapshots],
        )
    )
    return folder


async def started(
    root: Path, store: Store, sandbox_id: str, *, template: str = "warm", disks_bytes: int = 1 << 40
) -> StillSandbox:
    """The sandbox on a node that has just started there; whatever ran below the line is gone."""
    home = Home(root, root / "cache").make()
    every = Sandboxes(home, StillGround(home, template), ImageLibrary(home.images), store, _refuse, disks_bytes)
    await every.load()
    sandbox = every.find(sandbox_id)
    still = StillSandbox(sandbox.rooms, sandbox.folder, sandbox.record)
    for one in (sandbox, still):  # nodes die in these tests, and their logs stay open in this process
        weakref.finalize(one, one.log.close)
    return still


async def _refuse(*call: object) -> None:
    raise NotFound("nobody answers calls here")
