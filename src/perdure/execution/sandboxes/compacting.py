"""A snapshot of a sandbox is rewritten: the new one takes its place in the record, then the old one goes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from dataclasses import dataclass

import msgspec

from perdure.errors import Conflict, NotFound
from perdure.execution.sandboxes.life import Life
from perdure.execution.sandboxes.record import KeptSnapshot
from perdure.execution.sandboxes.states import LIVE
from perdure.execution.snapshots import diskchanges
from perdure.execution.snapshots.care import compact as compaction
from perdure.formats.manifest import Snapshot
from perdure.host.progress import Progress

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compacted:
    """The snapshot before and after (the same one where nothing would change), and what that freed."""

    before: Snapshot
    after: Snapshot
    freed_bytes: int


async def compact(life: Life, wanted: str, progress: Progress) -> Compacted:
    """Raises NotFound, Conflict (a machine runs over the layers), SnapshotInvalid, NoSpace; nothing is changed then.

    A crash after the new one is stored and before it is written down leaves the old one named; the next start of the
    node drops the new one.
    """
    if life.state in LIVE:
        raise Conflict(
            f"sandbox {life.name} is {life.state}: a machine may read the layers of its snapshots",
            hint=f"Suspend it first: fcrun suspend {life.name}",
        )
    kept = life.record.snapshot(wanted)
    if kept is None:
        raise NotFound(f"sandbox {life.name} has no snapshot {wanted}", hint=f"fcrun snapshot ls {life.name}")
    store, old = life.rooms.store, kept.info.digest
    before = await asyncio.to_thread(store.get, old)
    with contextlib.ExitStack() as held:

        def rewritten() -> Snapshot:
            with store.writing():  # until it is leased: no sweep is to find it before it is named
                after = compaction.compact(store, old, templates_folder=life.rooms.home.templates, progress=progress)
                held.enter_context(store.reading(after.digest))
            return after

        after = await asyncio.to_thread(rewritten)
        if after.digest == old:
            return Compacted(before, after, 0)
        return await _named(life, kept, before, after, held)


def _reindex(life: Life, old: str, new: str) -> None:
    """Both snapshots have the same disk."""
    if (index := diskchanges.load(life.folder.disk_index, old)) is not None:
        diskchanges.save(life.folder.disk_index, dataclasses.replace(index, snapshot=new))


async def take(life: Life, old: str, new: str) -> Compacted:
    """Name ``new``, which somebody made of ``old`` while the sandbox did what it liked. Raises NotFound (one of them is
    gone: nobody held it), Conflict (``old`` is not its newest any more), NoSpace; nothing is changed then.

    Also while a machine runs over the old one: its pager has the files of its layers open, and its next capture is a
    difference to the same content.
    """
    store = life.rooms.store
    kept = next((one for one in life.record.snapshots if one.info.digest == old), None)
    if kept is None:
        await asyncio.to_thread(store.remove, [new])
        raise NotFound(f"sandbox {life.name} has no snapshot {old} any more")
    if life.record.parent != old:  # what it goes on from lies over the old layers: these would only be stored twice
        await asyncio.to_thread(store.remove, [new])
        raise Conflict(f"sandbox {life.name} has gone on from {old}")
    with contextlib.ExitStack() as held:
        await asyncio.to_thread(held.enter_context, store.reading(new))  # no sweep is under way from now on
        if new not in await asyncio.to_thread(store.digests):
            raise NotFound(f"snapshot {new} was collected before anybody named it")
        before, after = await asyncio.to_thread(lambda: (store.get(old), store.get(new)))
        return await _named(life, kept, before, after, held)


async def _named(
    life: Life, kept: KeptSnapshot, before: Snapshot, after: Snapshot, held: contextlib.ExitStack
) -> Compacted:
    """The record names the new one, which ``held`` keeps from a sweep; then the old one goes."""
    old = before.digest
    fresh = msgspec.structs.replace(kept, info=after.info(total_s=kept.info.total_s), formerly=[*kept.formerly, old])
    try:
        life.save(
            snapshots=[fresh if one is kept else one for one in life.record.snapshots],
            parent=after.digest if life.record.parent == old else life.record.parent,
        )
    except BaseException:
        held.close()
        await asyncio.to_thread(life.rooms.store.remove, [after.digest])
        raise
    if life.session_parent == old:
        life.session_parent = after.digest
    await asyncio.to_thread(_reindex, life, old, after.digest)
    freed = await life.drop([old])
    _log.info("%s compacted %s to %s, %d bytes freed", life.id, old, after.digest, freed)
    life.emit("compacted", before=old, after=after.digest, freed_bytes=freed)
    return Compacted(before, after, freed)
