"""A log on its way out of a database, and into another one. Only some of it is in memory at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.context import queries, restoring
from perdure.context.changes import Turns
from perdure.context.moving import Ends, Stage, TakeBack, TakeUp, Tips, TurnsOf, not_shared
from perdure.context.spending import ENDS, Spending
from perdure.errors import Conflict, NotFound, PerdureError
from perdure.formats import logfile
from perdure.formats.chain import Counted, canonical, link_references
from perdure.formats.logfile import Beginning, Blob, End, EntryLine, Reader, Row, Stretch

if TYPE_CHECKING:
    from perdure.context.log import Head
    from perdure.context.stored import StoredLog

BATCH_ROWS = 500
BATCH_BYTES = 8 << 20
DIGEST = re.compile(rb"sha256:[0-9a-f]{64}")


def mentioned(stored: bytes) -> set[str]:
    """All digests in a stored value: those of large parts, and those that are values themselves (sources, bodies)."""
    return {found.decode() for found in DIGEST.findall(stored)}


async def export(log: StoredLog, run_id: str) -> AsyncGenerator[bytes]:
    head = await log.head(run_id)
    if head.pruned:
        raise NotFound(f"the log of run {run_id} was pruned", hint="Export a log before it is pruned.")
    stretches, parents = await log.whole(run_id)
    beginning = Beginning(
        perdure_log=logfile.VERSION,
        run_id=head.run_id,
        key=head.key,
        created=head.created,
        epoch=head.epoch,
        branch=head.branch,
        value=head.value,
        stretches=[
            Stretch(
                run_id=s.run_id,
                branch=s.branch,
                fork_seq=s.fork_seq,
                upto=s.upto,
                parent_run=parents.get((s.run_id, s.branch), (None, None))[0],
                parent=parents.get((s.run_id, s.branch), (None, None))[1],
            )
            for s in stretches
        ],
    )
    yield logfile.encode(beginning)
    seen, entries = set[str](), 0
    async for line in _blobs(log, mentioned(canonical(head.value)), seen):
        yield line
    for stretch in stretches:
        after = stretch.fork_seq
        while page := await log.own(stretch, after):
            after = page[-1][2]
            entries += len(page)
            async for line in _blobs(log, {digest for row in page for digest in mentioned(row[7])}, seen):
                yield line
            for row in page:
                yield logfile.encode(EntryLine.of(row))
    yield logfile.encode(End(end=True, entries=entries, blobs=len(seen)))


async def _blobs(log: StoredLog, digests: set[str], seen: set[str]) -> AsyncIterator[bytes]:
    """Those that there are and were not seen, referred-to before referring."""
    found = await log.below(digests, seen)
    while found:
        ready = [digest for digest, content in found.items() if not any(b in found for b in link_references(content))]
        for digest in sorted(ready):  # the same log gives the same file
            seen.add(digest)
            yield logfile.encode(Blob.of(digest, found.pop(digest)))


async def take_up(log: StoredLog, lines: AsyncIterator[bytes], prepare: Callable[[Any], Any]) -> Head:
    reader, incoming = Reader(), _Incoming(log, prepare)
    try:
        async for line in lines:
            part = reader.feed(line)
            if isinstance(part, Beginning):
                await incoming.begin(part)
            elif isinstance(part, Counted):
                return await incoming.end()
            elif part is not None:
                await incoming.add(part, len(line))
        raise logfile.cut()
    except BaseException:
        await incoming.forget()
        raise
    finally:
        incoming.leave()


class _Incoming:
    """What of an exported log is not written yet."""

    def __init__(self, log: StoredLog, prepare: Callable[[Any], Any]) -> None:
        self._log = log
        self._prepare = prepare
        self._pruned: Head | None = None  # the run is here, and its log was dropped
        self._back: Ends | None = None
        self._rows: list[Row] = []
        self._blobs: list[Blob] = []
        self._bytes = 0
        self._is_first = True
        self._held = ""  # the run's id, while no other log of it is taken up
        self._tips: Tips = {}
        self._turns: TurnsOf = {}
        self._spent = Spending()
        self._counted: set[tuple[str | None, bytes]] = set()  # ends of turns, by key and digest: copies cost nothing
        self._shared: dict[tuple[str, int], tuple[int, bytes]] = {}  # the last entry of what other runs have
        self._beginning: Beginning

    async def begin(self, beginning: Beginning) -> None:
        if beginning.run_id in self._log.incoming:
            message = f"the log of run {beginning.run_id} is being taken up just now"
            raise Conflict(message, hint=f"`perdure show {beginning.run_id}` has it then.")
        self._held = beginning.run_id
        self._log.incoming.add(self._held)
        with suppress(NotFound):
            head = await self._log.head(beginning.run_id)
            self._pruned = head if head.pruned else None
        if self._pruned is None:
            self._beginning = msgspec.structs.replace(beginning, value=self._prepare(beginning.value))
        else:
            self._beginning = beginning
            self._back = await restoring.ends(self._log, beginning)
        await self._write()  # refused at once where there is such a run

    async def add(self, part: Blob | Row, size_bytes: int) -> None:
        if isinstance(part, Blob):
            self._blobs.append(part)
        else:
            run_id, branch, seq, last = part[0], part[1], part[2], part[8]
            self._tips[run_id, branch] = last
            if run_id == self._beginning.run_id:
                if self._back is None or seq <= self._back[branch]:
                    self._rows.append(part)
                self._turns.setdefault((run_id, branch), Turns()).count(part[5])
                if part[5] in ENDS:
                    self._spend(part)
            else:
                self._shared[run_id, branch] = seq, last
        self._bytes += size_bytes
        if len(self._rows) >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            await self._write()

    def _spend(self, row: Row) -> None:
        end = row[6], hashlib.sha256(row[7]).digest()
        if end not in self._counted:
            self._counted.add(end)
            self._spent.count(row[5], msgspec.json.decode(row[7]))

    async def forget(self) -> None:
        """Nothing of it is to stay. Where even that fails, the next one of this id does it."""
        if not self._is_first:
            with suppress(PerdureError):
                await self._log.submit(Stage(self._beginning.run_id, [], [], is_first=True, back=self._back))

    def leave(self) -> None:
        """Another one of its id may begin."""
        self._log.incoming.discard(self._held)

    async def _write(self) -> None:
        stage = Stage(self._beginning.run_id, self._rows, self._blobs, is_first=self._is_first, back=self._back)
        await self._log.submit(stage)
        self._rows, self._blobs, self._bytes, self._is_first = [], [], 0, False

    async def end(self) -> Head:
        await self._write()
        for (run_id, branch), (seq, last) in self._shared.items():
            rows = await self._log.rows(queries.HASH_AT, {"run_id": run_id, "branch": branch, "seq": seq})
            if not rows or rows[0][0] != last:
                raise not_shared(self._beginning.run_id, run_id, seq)
        if self._pruned is None:
            return await self._log.submit(TakeUp(self._beginning, self._tips, self._turns, self._spent))
        tips = await restoring.tips(self._log, self._beginning, self._tips)
        await self._log.submit(TakeBack(self._pruned, self._prepare(self._pruned.value), tips, self._beginning))
        return await self._log.head(self._beginning.run_id)
