"""A writer to a node's folders that is killed (SIGKILL) at its Nth durable step: just before it, or just after it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from perdure.errors import NotFound
from perdure.execution.images import pulling
from perdure.execution.images.library import ImageLibrary
from perdure.execution.registry.reaching import opened
from perdure.execution.sandboxes.ground import Ground
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.execution.snapshots import capture, templates, transfer, warming
from perdure.execution.snapshots.care import compact, garbage
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.stores import open_store
from perdure.execution.snapshots.stores.folder import FolderStore
from perdure.formats.blockmap import BLOCK
from perdure.formats.manifest import Facts
from perdure.formats.references import parse
from perdure.host.paths import Home
from perdure.host.progress import silent
from perdure.testing import stillmachines
from perdure.testing.snapshots import BLOCKS, IMAGE, block, captured, facts, sparse_file

STEPS = ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir")
DISK_STEPS = (*STEPS, "utime", "ftruncate", "pwrite", "fdatasync")  # of those whose disk is kept
DEADLINE_S = 60.0
KILLED = -signal.SIGKILL
SEALED = "5ea1ed"  # the name of the template that is sealed, over the one that is called ``warm``
SEALED_MEMORY = {3: block(7001), 9: bytes(BLOCK)}
SEALED_DISK = {1: block(7002)}
DISK_BLOCKS = 8
BOX = "b0b0b0b0b0b0"  # the sandbox whose machine stands still
BOX_WRITES = {3: block(7003), 20: block(7004)}  # to its disk, by each of its machines


def run(folder: Path, action: str, digest: str, at: int, *, done: bool) -> int:
    """Do the action in a process of its own; its exit status: 0, or KILLED.

    done: the Nth step still happens. ``folder`` is a ``Bench``'s; a capture takes its ``captured`` and ``overlay``, an
    evict and a pull the store in ``remote``, what sandboxes do those in ``sandboxes``, BOX_ACTIONS the one called BOX.
    ``digest``: the snapshot that it is about; of a removal and a collection the only one that stays; for images, which
    are in ``images``, the name.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    writer = context.Process(target=_write, args=(str(folder), action, digest, at, done))
    writer.start()
    writer.join(DEADLINE_S)
    if writer.exitcode is None:
        writer.kill()
        raise AssertionError(f"the writer did not end within {DEADLINE_S:g} s")
    return writer.exitcode


def _write(folder: str, action: str, digest: str, at: int, done: bool) -> None:
    root = Path(folder)
    store = Store(root / "store")
    if action in BOX_ACTIONS:
        asyncio.run(_with_box(root, store, action, digest, at, done))
        return
    _die_at(at, done)
    if action == "capture":
        capture.pack(
            store,
            folder=root / "captured",
            overlay=root / "overlay",
            parent=store.get(digest),
            templates=root / "templates",
            sandbox_id="0123456789ab",
            image_digest="",
            working_set=(1, 2),
        )
    elif action == "compact":
        compact.compact(store, digest, templates_folder=root / "templates")
    elif action == "collect":
        garbage.collect(
            store, named=lambda one: one == digest, templates=root / "templates", templates_in_use=lambda: set()
        )
    elif action == "remove":
        store.remove([one for one in store.digests() if one != digest])
    elif action == "evict":
        transfer.evict(store, store.get(digest), open_store(str(root / "remote")))
    elif action == "seal":
        asyncio.run(seal(root))
    elif action == "forget":
        asyncio.run(_with_sandbox_of(root, store, digest, lambda sandbox: sandbox.forget(digest)))
    elif action == "remove the sandbox":
        asyncio.run(_with_sandbox_of(root, store, digest, lambda sandbox: sandbox.remove()))
    elif action == "pull":
        images, remote = ImageLibrary(root / "images"), FolderStore(root / "remote")
        transfer.pull(store, root / "templates", images, remote, digest, is_kept=True)
    elif action == "pull an image":
        reference = parse(digest)
        repository = opened(reference.host, reference.path, url=reference.place)
        pulling.pull(ImageLibrary(root / "images"), repository, reference, progress=silent)
    else:
        raise AssertionError(action)


async def seal(root: Path) -> None:
    """As a node does it, but for the machine."""
    base = templates.load(root / "templates", "warm")

    async def make(folder: Path, name: str) -> Facts:
        (folder / "memory").write_bytes(captured(SEALED_MEMORY, BLOCKS, base))
        (folder / "state").write_bytes(b"state of the sealed one")
        sparse_file(folder / "overlay", SEALED_DISK, DISK_BLOCKS)
        return facts()

    await warming._made(Home(root, root / "cache"), SEALED, make, IMAGE, base)


async def started(root: Path, store: Store) -> Sandboxes:
    """The sandboxes of a node that has just started there; below the line nothing lives."""
    home = Home(root, root / "cache").make()
    every = Sandboxes(home, Ground(home), ImageLibrary(home.images), store, _refuse)
    await every.load()
    return every


async def _with_sandbox_of(root: Path, store: Store, digest: str, act: Callable[[Sandbox], Awaitable[object]]) -> None:
    """Nothing where no sandbox has the snapshot any more: it was done."""
    every = await started(root, store)
    for sandbox in every.all():
        if sandbox.record.snapshot(digest) is not None:
            await act(sandbox)


BOX_ACTIONS = ("suspend", "suspend without room", "resume", "give up")


async def _with_box(root: Path, store: Store, action: str, digest: str, at: int, done: bool) -> None:
    """As a node does it whose machines stand still. It dies in the action, not before it."""
    limit_bytes = 0 if action == "suspend without room" else 1 << 40
    box = await stillmachines.started(root, store, BOX, disks_bytes=limit_bytes)
    box.writes = BOX_WRITES
    if action.startswith("suspend"):
        await box.resume()
        _die_at(at, done, DISK_STEPS)
        await box.suspend()
        return
    _die_at(at, done, DISK_STEPS)
    if action == "resume":
        await box.resume(snapshot=digest or None)
    else:
        await box.forget(digest, force=True)


async def _refuse(*call: object) -> None:
    raise NotFound("nobody answers calls here")


def _die_at(at: int, done: bool, steps: Sequence[str] = STEPS) -> None:
    left = at

    def dying(step: Callable[..., Any]) -> Callable[..., Any]:
        def taken(*values: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                try:
                    if done:
                        step(*values, **named)
                finally:
                    os.kill(os.getpid(), signal.SIGKILL)
            return step(*values, **named)

        return taken

    for name in steps:
        setattr(os, name, dying(getattr(os, name)))
