"""Removing blobs that nothing refers to.

A sweep counts itself first (``meta.sweep``); who refers to a blob from then on writes that number to it. Then it reads
what is referred to, and removes what was neither found nor referred to since the sweep before the last: between two
sweeps there is time for whoever put a blob to say what for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from perdure.context import queries
from perdure.context.changes import Needs, State
from perdure.context.exporting import mentioned
from perdure.context.log import Swept
from perdure.context.rows import key_of

if TYPE_CHECKING:
    from perdure.context.stored import StoredLog

PAGE = 2000
DIGEST_BYTES = 32


class CountSweep:
    """The number of the sweep that begins."""

    alone = True
    is_brief = False

    def needs(self, needs: Needs) -> None:
        needs.sweep = True

    def apply(self, state: State) -> int:
        state.sweep += 1
        state.is_sweep = True
        return state.sweep


class RemoveBlobs:
    """Blobs of a sweep before the last go, but for those that something referred to since they were looked at."""

    alone = True
    is_brief = False

    def __init__(self, keys: Sequence[bytes], oldest_kept: int) -> None:
        self.keys, self.oldest_kept = keys, oldest_kept

    def needs(self, needs: Needs) -> None:
        pass

    def apply(self, state: State) -> None:
        state.removed_blobs = [(key, self.oldest_kept) for key in self.keys]


async def sweep(log: StoredLog) -> Swept:
    number = await log.submit(CountSweep())
    live = await _live(log)
    blobs = stored_bytes = next_blobs = 0
    after = b""
    while page := await log.rows(queries.BLOB_ROWS, {"after": after, "limit": PAGE}):
        after = page[-1][0]
        dead = [row for row in page if row[0] not in live]
        going = [row for row in dead if row[2] < number - 1]
        if going:
            await log.submit(RemoveBlobs([row[0] for row in going], number - 1))
        blobs += len(going)
        stored_bytes += sum(row[3] for row in going)
        next_blobs += len(dead) - len(going)
    return Swept(blobs=blobs, stored_bytes=stored_bytes, next_blobs=next_blobs)


async def _live(log: StoredLog) -> set[bytes]:
    found: set[bytes] = set()
    for (value,) in await log.rows(queries.ALL_KEPT, {}):
        found.update(map(key_of, mentioned(value)))
    run_id = ""
    while page := await log.rows(queries.SUMMARIES, {"after": run_id, "limit": PAGE}):
        run_id = page[-1][0]
        found.update(key_of(digest) for row in page for digest in mentioned(row[1]))
    at: dict[str, Any] = {"run_id": "", "branch": 0, "seq": 0}
    while page := await log.rows(queries.PAYLOADS, {**at, "limit": PAGE}):
        at = dict(zip(at, page[-1], strict=False))
        found.update(key_of(digest) for row in page for digest in mentioned(row[3]))
    return found | await _below(log, found)


async def _below(log: StoredLog, found: set[bytes]) -> set[bytes]:
    """What the blobs that were found refer to, from one to the next."""
    refs: dict[bytes, list[bytes]] = {}
    after = b""
    while page := await log.rows(queries.BLOB_ROWS, {"after": after, "limit": PAGE}):
        after = page[-1][0]
        for key, below, _, _ in page:
            if below:
                refs[key] = [below[at : at + DIGEST_BYTES] for at in range(0, len(below), DIGEST_BYTES)]
    reached, left = set[bytes](), [key for key in found if key in refs]
    while left:
        for key in refs.get(left.pop(), ()):
            if key not in reached:
                reached.add(key)
                left.append(key)
    return reached
