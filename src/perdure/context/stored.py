"""The context log on a database: everything about it that is the same on each of them.

A database runs jobs (``context.changes``) in transactions, and queries (``context.queries``) outside of them. Its
notifications only say "look again": what followers see is what the database has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from perdure.context import exporting, listing, moving, queries, sweeping
from perdure.context.changes import Job
from perdure.context.jobs import Append, BranchOff, Create, Drop, Fork, Keep, Packed, PutBlob
from perdure.context.leases import Leases
from perdure.context.log import (
    NO_TAGS,
    ROOT_BRANCH,
    Beside,
    Branch,
    Head,
    Kept,
    NewEntry,
    NewHead,
    Stretch,
    Swept,
    Verification,
)
from perdure.context.mark import Acknowledged, Mark
from perdure.context.rows import digest_at, entry_of, head_of, key_of, no_blob, no_run, was_pruned
from perdure.context.sessions import Sessions
from perdure.context.spending import spent_of
from perdure.errors import Conflict, NotFound
from perdure.formats.chain import Place, Verifier, canonical, link_references, references
from perdure.model import Entry, Spent

PAGE = 1000
INLINE = 16  # so many entries are decoded at once without a thread
SHALLOW = 4  # so often blobs are fetched level by level, before what is below is fetched as one

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Row = tuple[Any, ...]


class Database(Protocol):
    """What differs. Every method raises the errors of ``perdure.errors``: ``Unavailable`` when it is away."""

    name: str  # for messages
    by_key: queries.ByKey

    @property
    def leases(self) -> Leases | None:
        """None: no other server has it open."""
        ...

    def submit(self, job: Job[Result]) -> Awaitable[Result]:
        """Apply ``job`` in a transaction, with others; returns its result once that is durable."""
        ...

    async def rows(self, query: str, values: Mapping[str, Any]) -> list[Row]: ...

    async def blobs(self, keys: Collection[bytes], *, deep: bool) -> dict[bytes, bytes]:
        """Those that there are, checked; ``deep``: and all that they refer to, from one to the next."""
        ...

    def watch(self, run_ids: Callable[[], Iterable[str]], wake: Callable[[str | None], None]) -> None:
        """From now on call ``wake`` with the id of a run that others may have written to (None: with any), of those
        that are of interest."""
        ...

    async def close(self) -> None: ...


class StoredLog:
    """See ``context.log.ContextLog``. Belongs to the event loop that opened it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._followers: dict[str, set[asyncio.Event]] = {}
        self._closed = False
        self._mark: Mark | None = None
        self._lineage = ""
        self.incoming: set[str] = set()  # runs whose exported logs are just taken up
        self.leases = database.leases
        self.by_key = database.by_key
        self.sessions = Sessions(self)
        database.watch(lambda: self._followers, self._wake)

    async def close(self) -> None:
        self._closed = True
        self._wake(None)
        await self._database.close()
        if self._mark is not None:
            self._mark.close()

    @property
    def name(self) -> str:
        return self._database.name

    async def remember(self, path: Path) -> None:
        mark, [(self._lineage,)] = Mark(path), await self._database.rows(queries.LINEAGE_ID, {})
        last = mark.read()
        if last is not None and last.lineage == self._lineage:
            where = {"run_id": last.run_id, "branch": last.branch, "seq": last.seq}
            rows = await self._database.rows(queries.STILL_THERE, where)
            # No hash: the entry was pruned since, with its run.
            if not rows or rows[0][0] < last.seq or rows[0][1] not in (None, bytes.fromhex(last.hash)):
                raise self._older(last, rows[0][0] if rows else None, path)
        elif last is not None:
            log.warning("%s is another log than the one that this server had before", self.name)
        self._mark = mark

    def _older(self, last: Acknowledged, seq: int | None, path: Path) -> Conflict:
        if seq is None:
            found = "does not have that run"
        else:
            found = f"ends at entry {seq}" if seq < last.seq else "has another one there"
        message = f"""the context log {self.name} is older than what this server has acknowledged: \
entry {last.seq} of run {last.run_id}, branch {last.branch} was written, and the log {found}"""
        hint = f"""An older backup was restored, it seems: restore a newer one. \
To go on with this one, and lose what it does not have, remove {path}."""
        return Conflict(message, hint=hint)

    def _acknowledge(self, entries: Sequence[Entry]) -> None:
        if self._mark is not None and entries:
            self._mark.write(self._lineage, entries[-1])

    def _wake(self, run_id: str | None) -> None:
        for followed in list(self._followers) if run_id is None else [run_id]:
            for event in self._followers.get(followed, ()):
                event.set()

    # -- writing

    async def create(self, run_id: str, value: Any, *, key: str | None = None, replacing: str | None = None) -> Head:
        created = await self._database.submit(Create(run_id, value, key, replacing))
        return await self.head(created) if isinstance(created, str) else created

    async def append(
        self,
        run_id: str,
        new_entries: Sequence[NewEntry],
        *,
        epoch: int | None,
        branch: int | None = None,
        expected_seq: int | None = None,
        head: NewHead | None = None,
        beside: Sequence[Beside] = (),
        blobs: Sequence[bytes] = (),
    ) -> list[Entry]:
        packed = Packed(new_entries, head, beside, blobs)
        job = Append(run_id, packed, epoch=epoch, branch=branch, expected_seq=expected_seq)
        return self._written(run_id, await self._database.submit(job))

    async def fork(
        self,
        run_id: str,
        new_entries: Sequence[NewEntry],
        *,
        parent: int,
        fork_seq: int,
        epoch: int | None,
        head: NewHead | None = None,
        beside: Sequence[Beside] = (),
    ) -> list[Entry]:
        packed = Packed(new_entries, head, beside)
        job = Fork(run_id, packed, epoch=epoch, parent=parent, fork_seq=fork_seq)
        return self._written(run_id, await self._database.submit(job))

    async def branch_off(
        self,
        run_id: str,
        value: Any,
        new_entries: Sequence[NewEntry],
        *,
        parent_run: str,
        parent: int,
        fork_seq: int,
        epoch: int,
    ) -> Head:
        packed = Packed(new_entries, None)
        job = BranchOff(run_id, value, packed, parent_run=parent_run, parent=parent, fork_seq=fork_seq, epoch=epoch)
        return await self._database.submit(job)

    async def write(self, run_id: str, job: Job[list[Entry]]) -> list[Entry]:
        """Of a session."""
        return self._written(run_id, await self._database.submit(job))

    def _written(self, run_id: str, entries: list[Entry]) -> list[Entry]:
        self._acknowledge(entries)
        self._wake(run_id)
        return entries

    async def keep(self, kind: str, name: str, value: Any, *, expected_version: int | None = None) -> Kept:
        return await self._database.submit(Keep(kind, name, value, expected_version))

    async def drop(self, kind: str, name: str) -> bool:
        return await self._database.submit(Drop(kind, name))

    async def put_blob(self, content: bytes) -> str:
        return await self._database.submit(PutBlob(content))

    # -- reading

    async def head(self, run_id: str) -> Head:
        rows = await self._database.rows(queries.HEAD_OF, {"run_id": run_id})
        if not rows:
            raise no_run(run_id)
        return head_of(rows[0])

    async def head_of_key(self, key: str) -> Head | None:
        rows = await self._database.rows(queries.HEAD_OF_KEY, {"key": key})
        return head_of(rows[0]) if rows else None

    async def heads(
        self,
        *,
        states: Collection[str] | None = None,
        name: str | None = None,
        parent: str | None = None,
        below: Collection[str] | None = None,
        forks_of: Collection[str] | None = None,
        tags: Mapping[str, str] = NO_TAGS,
        prefix: str = "",
        ids: Collection[str] | None = None,
        released: bool | None = None,
        pruned: bool | None = None,
        beyond: str | None = None,
        newest: bool = False,
        limit: int | None = None,
    ) -> list[Head]:
        query, values = listing.heads_query(
            states=states,
            name=name,
            parent=parent,
            below=below,
            forks_of=forks_of,
            tags=tags,
            prefix=prefix,
            ids=ids,
            released=released,
            pruned=pruned,
            beyond=beyond,
            newest=newest,
            limit=limit,
        )
        return await _decoded(await self._database.rows(query, values), head_of)

    async def states(self) -> dict[str, int]:
        return {state: int(count) for state, count in await self._database.rows(listing.STATES, {})}

    async def spent_jointly(self, budget: str, period: str) -> Spent:
        [row] = await self._database.rows(queries.JOINTLY, {"budget": budget, "period": period})
        return spent_of(row)

    async def branches(self, run_id: str) -> list[Branch]:
        rows = await self._database.rows(queries.BRANCHES, {"run_id": run_id})
        if not rows:
            raise no_run(run_id)
        return [Branch(branch=b, parent=p, fork_seq=f, seq=s, parent_run=r) for b, p, f, s, r in rows]

    async def lineage(self, run_id: str, branch: int | None = None) -> list[Stretch]:
        rows = await self._database.rows(queries.LINEAGE, {"run_id": run_id, "branch": branch})
        if not rows:
            await self.head(run_id)
            raise NotFound(f"run {run_id} has no branch {branch}")
        return [Stretch(run_id=run, branch=b, fork_seq=f, upto=u) for run, b, f, u in rows]

    async def kept(self, kind: str, name: str | None = None) -> list[Kept]:
        rows = await self._database.rows(queries.KEPT, {"kind": kind, "name": name})
        return [Kept(kind=k, name=n, version=v, value=msgspec.json.decode(value)) for k, n, v, value in rows]

    async def read(
        self,
        run_id: str,
        *,
        branch: int | None = None,
        after: int = 0,
        limit: int = PAGE,
        expand: bool = True,
        kind: str | None = None,
        key: str | None = None,
    ) -> list[Entry]:
        where: dict[str, Any] = {"run_id": run_id, "branch": branch, "after": after, "limit": limit}
        if kind == queries.WAITS and key is None:
            rows = await self._database.rows(queries.READ_WAITS, where)
        else:
            rows = await self._database.rows(queries.READ, {**where, "kind": kind, "key": key})
        if not rows and branch is None:
            head = await self.head(run_id)
            if head.pruned and after < head.seq:
                raise was_pruned(run_id)
        return await self.entries_of(rows, expand=expand)

    async def find(self, run_id: str, branch: int, key: str) -> list[Entry]:
        rows = await self._database.rows(self.by_key.find, {"run_id": run_id, "branch": branch, "key": key})
        return await self.entries_of(rows, expand=True)

    async def entries_of(self, rows: list[Row], *, expand: bool) -> list[Entry]:
        if not expand:
            return await _decoded(rows, lambda row: entry_of(row, None))
        needed = await _decoded(rows, _needed)
        keys = {key for found in needed for key in found}
        blobs = await self._database.blobs(keys, deep=True) if keys else {}

        def get(digest: str) -> bytes:
            content = blobs.get(key_of(digest))
            if content is None:
                raise no_blob(digest)
            return content

        return await _decoded(rows, lambda row: entry_of(row, get))

    async def follow(
        self, run_id: str, *, branch: int | None = None, after: int = 0, expand: bool = True
    ) -> AsyncIterator[Entry]:
        event = asyncio.Event()
        self._followers.setdefault(run_id, set()).add(event)
        try:
            current = branch if branch is not None else (await self.head(run_id)).branch
            while not self._closed:
                event.clear()
                page = await self.read(run_id, branch=current, after=after, expand=expand)
                for entry in page:
                    after = entry.seq
                    yield entry
                if page:
                    continue
                newest = current if branch is not None else (await self.head(run_id)).branch
                if newest != current:
                    after = min(after, await self._parting(run_id, current, newest))
                    current = newest
                    continue
                await event.wait()
        finally:
            self._followers[run_id].discard(event)
            if not self._followers[run_id]:
                del self._followers[run_id]

    async def _parting(self, run_id: str, one: int, other: int) -> int:
        """The last seq that two branches share."""
        ways = [{(s.run_id, s.branch): s.upto for s in await self.lineage(run_id, branch)} for branch in (one, other)]
        return max(min(ways[0][at], ways[1][at]) for at in ways[0].keys() & ways[1].keys())

    async def get_blob(self, digest: str) -> bytes:
        key = key_of(digest)
        found = await self._database.blobs([key], deep=False)
        if key not in found:
            raise no_blob(digest)
        return found[key]

    async def verify(self, run_id: str) -> Verification:
        head = await self.head(run_id)
        if head.pruned:
            raise was_pruned(run_id)
        stretches, parents = await self.whole(run_id)
        verifier = Verifier(stretches, parents)
        verifier.blobs((), await self.below(exporting.mentioned(canonical(head.value)), verifier.seen))
        for stretch in stretches:
            verifier.begin(stretch)
            after = stretch.fork_seq
            while page := await self.own(stretch, after):
                after = page[-1][2]
                needed = {digest for found in await _decoded(page, verifier.entry) for digest in found}
                mentioned = {digest for row in page for digest in exporting.mentioned(row[7])}
                verifier.blobs(needed, await self.below(needed | mentioned, verifier.seen))
            verifier.end()
        return Verification(**verifier.result()._asdict())

    def export(self, run_id: str) -> AsyncGenerator[bytes]:
        return exporting.export(self, run_id)

    async def take_up(self, lines: AsyncIterator[bytes], prepare: Callable[[Any], Any] = lambda value: value) -> Head:
        return await exporting.take_up(self, lines, prepare)

    async def prune(self, run_id: str, *, expected_version: int | None = None, kind: str | None = None) -> None:
        await self.submit(moving.Drop(run_id, expected_version, kind))

    async def sweep(self) -> Swept:
        return await sweeping.sweep(self)

    # -- for those of this room

    async def submit(self, job: Job[Result]) -> Result:
        return await self._database.submit(job)

    async def rows(self, query: str, values: Mapping[str, Any]) -> list[Row]:
        return await self._database.rows(query, values)

    async def whole(self, run_id: str) -> tuple[list[Stretch], dict[Place, Place]]:
        """All branches of a run and what they share with other runs, parents before children; and each one's parent."""
        branches = await self.branches(run_id)
        shared = [above for above in (await self.lineage(run_id, ROOT_BRANCH))[::-1] if above.run_id != run_id]
        own = [Stretch(run_id=run_id, branch=b.branch, fork_seq=b.fork_seq, upto=b.seq) for b in branches]
        parents = {(run_id, b.branch): (b.parent_run or run_id, b.parent) for b in branches if b.parent}
        parents |= {(below.run_id, below.branch): (above.run_id, above.branch) for above, below in pairwise(shared)}
        return [*shared, *own], parents

    async def own(self, stretch: Stretch, after: int) -> list[Row]:
        where = {
            "run_id": stretch.run_id,
            "branch": stretch.branch,
            "after": after,
            "upto": stretch.upto,
            "limit": PAGE,
        }
        return await self._database.rows(queries.OWN, where)

    async def below(self, digests: Collection[str], seen: Collection[str]) -> dict[str, bytes]:
        """These blobs and what they refer to, but for what was seen: a conversation is not read again with every page
        of it."""
        found: dict[str, bytes] = {}
        level = {key_of(digest) for digest in digests if digest not in seen}
        for depth in range(SHALLOW + 1):
            if not level:
                break
            blobs = await self._database.blobs(level, deep=depth == SHALLOW)
            found |= {digest_at(key): content for key, content in blobs.items()}
            below = {digest for content in blobs.values() for digest in link_references(content)}
            level = {key_of(digest) for digest in below if digest not in seen and digest not in found}
        return found


def _needed(row: Row) -> list[bytes]:
    return [key_of(digest) for digest in references(msgspec.json.decode(row[7]))]


async def _decoded(rows: list[Row], decode: Callable[[Row], Result]) -> list[Result]:
    """Many are decoded in a thread, so that others are served meanwhile."""
    if len(rows) <= INLINE:
        return [decode(row) for row in rows]
    return await asyncio.to_thread(lambda: [decode(row) for row in rows])
