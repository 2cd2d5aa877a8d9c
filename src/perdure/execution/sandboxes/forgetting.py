"""A sandbox gives up one of its snapshots."""

from __future__ import annotations

import asyncio

from perdure.errors import Conflict, NotFound
from perdure.execution.sandboxes.life import Life
from perdure.execution.sandboxes.states import LIVE
from perdure.model import SandboxState


async def forget(life: Life, wanted: str, *, force: bool) -> int:
    """The bytes freed: blobs that other snapshots need stay. Raises NotFound, Conflict (it is needed)."""
    record = life.record
    kept = record.snapshot(wanted)
    if kept is None:
        raise NotFound(f"sandbox {life.name} has no snapshot {wanted}", hint=f"fcrun snapshot ls {life.name}")
    digest, left = kept.info.digest, [one for one in record.snapshots if one is not kept]
    newest = record.parent == digest and life.state is not SandboxState.EXITED
    if newest and life.state in LIVE:
        raise Conflict(
            f"sandbox {life.name} runs over snapshot {digest}",
            hint="Its next snapshot takes over what it needs of it: suspend it, then remove this one.",
        )
    if newest and not left:
        raise Conflict(
            f"snapshot {digest} is all that there is of sandbox {life.name}",
            hint=f"Remove the sandbox itself: fcrun rm {life.name}",
        )
    if newest and not force:
        raise Conflict(
            f"sandbox {life.name} is suspended to snapshot {digest}",
            hint="With --force it goes back to the snapshot before it: what it did since is lost.",
        )
    if newest:  # first: it holds what that snapshot holds, and would be nobody's
        await asyncio.to_thread(life.folder.disk.unlink, missing_ok=True)
    life.save(snapshots=left, parent=None if record.parent == digest else record.parent)
    if life.session_parent == digest:
        life.session_parent = None
    return await life.drop([digest])
