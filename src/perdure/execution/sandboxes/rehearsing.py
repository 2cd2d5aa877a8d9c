"""A snapshot restored for real, in a machine that is thrown away and never runs an instruction of it.

    prepare -> keeper -> load, stay paused -> all of its memory through the pager into a file -> digest; disk -> fsck

It is the same road as a resume's: the same files, keeper, pager and Firecracker. Firecracker itself then writes the
memory that its vCPUs would see, so what is hashed is what a guest would meet. The machine has an id, a folder and a
disk of its own: whose snapshot it is, runs or sleeps on, and is not asked.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import shutil
import time
from pathlib import Path

from perdure.execution.images.library import ImageLibrary
from perdure.execution.machine.remote import Launcher
from perdure.execution.sandboxes import disk
from perdure.execution.sandboxes.ground import Ground
from perdure.execution.sandboxes.machine import end_stray
from perdure.execution.snapshots import restore
from perdure.execution.snapshots.care import content
from perdure.execution.snapshots.care.verify import Restored
from perdure.execution.snapshots.store import Store
from perdure.formats.manifest import Snapshot
from perdure.host.paths import Home
from perdure.model import new_id

PATIENCE_S = 600.0  # for each step: an emulated machine reads all of a large memory slowly
_FOLDER = re.compile(r"verify-([0-9a-f]{12})-[0-9a-f]{8}\Z")

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
        disk.admit(self._home.run, snapshot.memory.size, "a restore to verify")
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
            memory = await self._memory(launcher, machine_id, files, str(image.squashfs), folder)
            digest = await asyncio.to_thread(content.digest_of_file, memory)
            problem = await asyncio.to_thread(disk.problem_of, files.overlay)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        _log.info("%s restored to verify it in %.2f s", snapshot.digest, time.monotonic() - began)
        return Restored(digest, problem)

    async def _memory(
        self, launcher: Launcher, machine_id: str, files: restore.RestoreFiles, image: str, folder: Path
    ) -> Path:
        """The file of all memory, as Firecracker wrote it before any of its instructions ran; the machine is gone."""
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
                drives={"image": image, "overlay": str(files.overlay)},
                swap=False,
                paused=True,
            )
            await keeper.request("capture", timeout_s=PATIENCE_S, kind="full")
            captured = folder / "captured"
            captured.mkdir(mode=0o700)
            collected = await keeper.request("collect", timeout_s=PATIENCE_S, folder=str(captured))
            return Path(collected["memory"])
        finally:
            keeper.close()
            await end_stray(launcher, machine_id)


def left_over(run: Path) -> dict[str, Path]:
    """What a killed node left of its rehearsals: the id of each machine, and its folder."""
    return {found[1]: path for path in run.glob("verify-*") if (found := _FOLDER.match(path.name))}


def sweep(run: Path) -> None:
    """Remove those folders, once their machines have ended."""
    for path in left_over(run).values():
        shutil.rmtree(path, ignore_errors=True)
