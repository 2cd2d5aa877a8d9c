"""A snapshot restored for real, in a machine that is thrown away and never runs an instruction of it.

    prepare -> keeper -> load, stay paused -> all of its memory through the pager into a file -> digest; disk -> fsck

It is the same road as a resume's: the same files, keeper, pager and Firecracker. Firecracker itself then writes the
memory that its vCPUs would see, so what is hashed is what a guest would meet. The machine has an id, a folder and a
disk of its own: whose snapshot it is, runs or sleeps on, and is not asked.

A few blocks Firecracker changes by itself: at the load a new generation id (VMGenID), at every capture the event that
tells the guest's vsock driver of a reset. As no vCPU has run, exactly those are in the dirty log: captures of kind
"diff" before and after the full one name them, and what is not in them must be what the layers hold.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from perdure.execution.images.library import ImageLibrary
from perdure.execution.machine.configuration import PLACEHOLDER_BYTES
from perdure.execution.machine.remote import Keeper, Launcher
from perdure.execution.sandboxes import disk, mounts
from perdure.execution.sandboxes.ground import Ground
from perdure.execution.sandboxes.machine import end_stray
from perdure.execution.snapshots import restore, spaces
from perdure.execution.snapshots.care import content
from perdure.execution.snapshots.care.verify import Restored
from perdure.execution.snapshots.collected import opened
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.templates import Template
from perdure.formats.blockmap import BLOCK, LAYER
from perdure.formats.manifest import Snapshot
from perdure.host.paths import Home
from perdure.linux import sparse
from perdure.model import new_id

PATIENCE_S = 600.0  # for each step: an emulated machine reads all of a large memory slowly
_CAPTURES = ("diff-1", "full-2", "diff-3")
_FOLDER = re.compile(r"(?:verify|reading)-([0-9a-f]{12})-[0-9a-f]{8}\Z")

_log = logging.getLogger(__name__)


class Rehearsal:
    """The ``RealRestore`` of a node; ``loop`` is the node's. Call it from a thread."""

    def __init__(
        self, home: Home, ground: Ground, images: ImageLibrary, store: Store, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._home, self._ground, self._images, self._store, self._loop = home, ground, images, store, loop

    def __call__(self, snapshot: Snapshot) -> Restored:
        """Raises what refused the restore; nothing is left behind in any case."""
        return asyncio.run_coroutine_threadsafe(self._restored(snapshot), self._loop).result()

    async def _restored(self, snapshot: Snapshot) -> Restored:
        began = time.monotonic()
        image = self._images.get(snapshot.config.image_digest)  # first: without it nothing needs to be started
        disk.admit(self._home, self._home.run, snapshot.memory.size, "a restore to verify")
        facts = snapshot.config.facts
        launcher, template = await self._ground.stand(facts.vcpus, facts.memory_mib)
        machine_id = new_id()
        folder = self._home.run / f"verify-{machine_id}-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        try:
            files = await asyncio.to_thread(
                restore.prepare,
                self._store,
                snapshot,
                folder=folder,
                templates=self._home.templates,
                facts=template.facts,
            )
            volumes = await asyncio.to_thread(_stand_ins, snapshot, folder)
            captured = await self._captured(launcher, machine_id, files, str(image.squashfs), volumes, folder)
            digest, own = await asyncio.to_thread(self._compared, snapshot, files.template, *captured)
            problem = await asyncio.to_thread(disk.problem_of, files.overlay)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        _log.info("%s restored to verify it in %.2f s", snapshot.digest, time.monotonic() - began)
        return Restored(digest, own, problem)

    async def _captured(
        self,
        launcher: Launcher,
        machine_id: str,
        files: restore.RestoreFiles,
        image: str,
        volumes: dict[str, str],
        folder: Path,
    ) -> tuple[Path, list[Path]]:
        """The file of all memory before any instruction ran, and those with what changed; the machine is gone then."""
        assets = await self._ground.assets()
        keeper = await launcher.spawn(machine_id)
        try:
            await keeper.request(
                "restore",
                timeout_s=PATIENCE_S,
                firecracker=str(assets.firecracker),
                pager=str(assets.pager),
                state=str(files.state),
                memory={
                    "kind": "layers",
                    "map": str(files.memory_map),
                    "name": files.template.name,
                    "template": str(files.template.memory),
                },
                drives={"image": image, "overlay": str(files.overlay)} | volumes,
                swap=False,
                paused=True,
            )
            collector, made = str(assets.collector), []
            for name in _CAPTURES:
                kind = name.partition("-")[0]
                collected = await self._capture(keeper, folder / name, kind, collector)
                made.append(await asyncio.to_thread(_raw, collected, files.template.size, zeros=kind == "diff"))
            return made[1], [made[0], made[2]]
        finally:
            keeper.close()
            await end_stray(launcher, machine_id)

    async def _capture(self, keeper: Keeper, folder: Path, kind: str, collector: str) -> Path:
        folder.mkdir(mode=0o700)
        await keeper.request("capture", timeout_s=PATIENCE_S, kind=kind, collector=collector)
        collected = await keeper.request("collect", timeout_s=PATIENCE_S, folder=str(folder))
        return Path(collected["memory"])

    def _compared(
        self, snapshot: Snapshot, template: Template, whole: Path, changed: Sequence[Path]
    ) -> tuple[str, frozenset[int]]:
        """(digest of the memory without the blocks that Firecracker changed, those)"""
        own: set[int] = set()
        with spaces.memory_of(self._store, snapshot, template) as memory:
            for path in changed:
                own |= {number for number, data in _blocks(path) if memory.read(number, number + 1) != data}
        return content.digest_of_file(whole, without=own), frozenset(own)


def _stand_ins(snapshot: Snapshot, folder: Path) -> dict[str, str]:
    """A file for each of its volumes' drives, by id: nothing runs, so nothing reads them."""
    origin, found = snapshot.config.origin, {}
    for drive in mounts.drives_of(origin.spec) if origin else ():
        path = folder / drive.id
        path.write_bytes(bytes(PLACEHOLDER_BYTES))
        found[drive.id] = str(path)
    return found


def _raw(captured: Path, size: int, *, zeros: bool) -> Path:
    """A sparse file of a whole memory with what a capture file holds. ``zeros``: blocks of zeros are data in it too."""
    target = captured.with_name("raw")
    held = opened(captured, size // BLOCK)
    with target.open("xb", buffering=0) as file:
        file.truncate(size)
        for run in held.runs:
            if run.source == LAYER:
                view, place = held.content(run), run.first * BLOCK
                while view:
                    done = os.pwrite(file.fileno(), view, place)
                    view, place = view[done:], place + done
            elif zeros:
                for block in range(run.first, run.first + run.length):
                    os.pwrite(file.fileno(), bytes(BLOCK), block * BLOCK)
    return target


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """The blocks that a sparse file holds, by number."""
    with path.open("rb", buffering=0) as file:
        for place, length in sparse.extents(file.fileno()):
            for start in range(place, place + length, BLOCK):
                yield start // BLOCK, os.pread(file.fileno(), BLOCK, start)


def left_over(run: Path) -> dict[str, Path]:
    """What a killed node left of its rehearsals, and of what it only read: the id of each machine, and its folder."""
    return {found[1]: path for path in run.glob("*-*-*") if (found := _FOLDER.match(path.name))}


def sweep(run: Path) -> None:
    """Remove those folders, once their machines have ended."""
    for path in left_over(run).values():
        shutil.rmtree(path, ignore_errors=True)
