"""Several sandboxes from one snapshot: each goes on from the same moment, by itself, and none is taken for another.

They share layers and page cache. Identity, clock and entropy are new before anything runs (``resuming``); what differs
from then on is each one's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from perdure.errors import Conflict, InvalidValue
from perdure.execution.sandboxes import feeding, fittings, mounts
from perdure.execution.sandboxes.record import KeptSnapshot, Record
from perdure.execution.sandboxes.rooms import Rooms
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.snapshots import restore
from perdure.execution.snapshots.diskspace import space_checked
from perdure.execution.snapshots.restore import RestoreFiles
from perdure.formats.manifest import Origin, Snapshot
from perdure.host.progress import Progress
from perdure.model import Fork, SandboxState

_IDS = "ids"
AT_ONCE = 4  # restores; more would only wait for each other's processors

_log = logging.getLogger(__name__)


async def moment_of(sandbox: Sandbox) -> str:
    """The snapshot (digest) to fork a sandbox from: taken now where it runs, else its last one. Raises Conflict."""
    if sandbox.state in (SandboxState.RUNNING, SandboxState.PAUSED):  # the latter is refused
        return (await sandbox.checkpoint()).digest
    record = sandbox.record
    if record.parent is not None:
        return record.parent
    if record.snapshots:
        return record.snapshots[-1].info.digest
    raise Conflict(
        f"sandbox {sandbox.name} is {sandbox.state}, and has no snapshot to fork from",
        hint=f"Start it first: fcrun start {sandbox.name}",
    )


def origin_of(snapshot: Snapshot) -> Origin:
    """Raises InvalidValue for a snapshot that does not say what runs in it, or says what no node has (it may be from
    anywhere), Conflict for one that no other sandbox can go on from."""
    if snapshot.config.origin is None:
        raise InvalidValue(
            f"snapshot {snapshot.digest} was made before there were forks: it does not say what runs in it",
            hint="Resume its sandbox, suspend it again, and fork that.",
        )
    fittings.check(snapshot.config.origin.spec)
    if written := mounts.writes_volumes(snapshot.config.origin.spec):
        raise Conflict(
            f"snapshot {snapshot.digest} is of a sandbox that writes volume {written[0]}, which two cannot do",
            hint="Fork sandboxes whose volumes are read-only (:ro), or copy files in: -v /host/folder:/path.",
        )
    return snapshot.config.origin


def record_of(sandbox_id: str, name: str, fork: Fork, snapshot: Snapshot, origin: Origin, owner: str) -> Record:
    """What a fork is before it goes on: suspended at the snapshot, with no addresses yet."""
    # its origin has the others, and the names by which members of its networks know it
    ports = [msgspec.structs.replace(port, host_port=0) for port in origin.spec.ports]
    changes = {"name": name, "hostname": "", "auto_remove": fork.auto_remove, "ports": ports, "aliases": []}
    return Record(
        id=sandbox_id,
        name=name,
        spec=msgspec.structs.replace(origin.spec, labels=origin.spec.labels | fork.labels, **changes),
        image_digest=snapshot.config.image_digest,
        created=time.time(),
        state=SandboxState.SUSPENDED,
        main=origin.main,
        parent=snapshot.digest,
        snapshots=[KeptSnapshot.of(snapshot.info(), origin)],
        started=origin.started,
        owner=owner,
        calls=fork.calls,
    )


@contextlib.contextmanager
def making(run: Path, ids: Sequence[str]) -> Iterator[Path]:
    """Write down which sandboxes are about to be made, until they all run or none is there: what a node that is killed
    meanwhile had made of them, the next one removes. Gives the folder for what they share."""
    with space_checked("forks"):
        folder = Path(tempfile.mkdtemp(dir=run, prefix="fork-"))
    try:
        with space_checked("forks"):
            (folder / _IDS).write_text("\n".join(ids))
        yield folder
    finally:
        (folder / _IDS).unlink(missing_ok=True)  # done: from here on they are as any other
        shutil.rmtree(folder, ignore_errors=True)


def unfinished(run: Path) -> set[str]:
    """The ids of sandboxes that a killed node was making."""
    return {sandbox_id for path in run.glob(f"fork-*/{_IDS}") for sandbox_id in path.read_text().split()}


async def start(
    rooms: Rooms,
    snapshot: Snapshot,
    forks: Sequence[Sandbox],
    folder: Path,
    progress: Progress,
    populate: bool | None = None,
) -> None:
    """Let sandboxes that were made for it (suspended at the snapshot) run. All do, or the error of the first that did
    not is raised; whoever calls removes them then. ``folder``: of ``making``. ``populate``: see ``resuming``."""
    held = await feeding.opened(rooms.store, snapshot)  # what is fetched for the first stays for the others
    try:
        await _start(rooms, snapshot, forks, folder, progress, populate)
    finally:
        if held is not None:
            await held.close()


async def _start(
    rooms: Rooms,
    snapshot: Snapshot,
    forks: Sequence[Sandbox],
    folder: Path,
    progress: Progress,
    populate: bool | None,
) -> None:
    began = time.monotonic()
    spec = origin_of(snapshot).spec
    _, template = await rooms.ground.stand(spec.vcpus, spec.memory_mib, progress, mounts.shape_of(spec))
    free = asyncio.Semaphore(AT_ONCE)
    done = 0

    async def one(fork: Sandbox, ready: RestoreFiles) -> None:
        nonlocal done
        async with free:
            await fork.resume(ready=ready, populate=populate)
        done += 1
        progress("Forking", done, len(forks))

    progress("Forking", 0, len(forks))
    # prepared once: the others take links and clones of it
    ready = await asyncio.to_thread(
        restore.prepare,
        rooms.store,
        snapshot,
        folder=folder,
        templates=rooms.home.templates,
        facts=template.facts,
    )
    results = await asyncio.gather(*(one(fork, ready) for fork in forks), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    _log.info("%d forks of %s in %.2f s", len(forks), snapshot.digest, time.monotonic() - began)


def sweep(run: Path) -> None:
    """Remove what forks of a killed node had prepared."""
    for path in run.glob("fork-*"):
        shutil.rmtree(path, ignore_errors=True)
