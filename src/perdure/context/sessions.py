"""Sessions: context logs that no run writes, but programs from outside, each under a name that its program chose.

A session is a row beside the runs whose summary says so (``context.listing``): its log is one of the same kind, with
the same chain, blobs and forks, and no machine, epoch or state of a run. Its summary holds a small ``value`` of its
program's, which is replaced whole, in the same transaction as entries. Any server on the database writes to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from perdure.context import queries
from perdure.context.jobs import Append, BranchOff, Packed
from perdure.context.listing import GONE, SESSION
from perdure.context.log import NO_TAGS, Head, NewEntry, NewHead
from perdure.context.replacing import Forget, Replace
from perdure.errors import Conflict, InvalidValue, LogConflict, NotFound, ProtocolError, StaleEpoch
from perdure.model import Entry, SessionInfo, new_id

if TYPE_CHECKING:
    from perdure.context.stored import StoredLog

NAME_MAX_BYTES = 1024  # an index of every database holds it
KEY_MAX_BYTES = 1024
TAGS_MAX = 16
KEYS_MAX = 1000  # that are looked up at once
AT_ONCE = 200
TRIES = 100  # of a write that others were in the way of; each time one of theirs was done
PAGE = 1000


class NewItem(NewEntry, frozen=True, kw_only=True):
    """An entry to append to a session; ``once``: unless one with its key is there."""

    once: bool = False


class Sessions:
    """The sessions of a log. ``NotFound`` names the session, ``InvalidValue`` what is wrong with a name."""

    def __init__(self, log: StoredLog) -> None:
        self._log = log

    async def make(self, name: str, tags: Mapping[str, str] = NO_TAGS, value: Any = None) -> tuple[SessionInfo, bool]:
        """A session, and whether it is new; one that is there stays as it is."""
        _check(name, tags)
        run_id = new_id()
        head = await self._log.create(run_id, _summary(name, tags, value), key=_key(name))
        return _info(head), head.run_id == run_id

    async def get(self, name: str) -> SessionInfo:
        return _info(await self._head(name))

    async def all(self, tags: Mapping[str, str], beyond: str | None, limit: int) -> list[SessionInfo]:
        """Oldest first: those that have all these tags. beyond: the id of the session that the page before ended with,
        which may have been deleted since."""
        heads = await self._log.heads(states=[SESSION], tags=tags, beyond=beyond, limit=limit)
        return [_info(head) for head in heads]

    async def append(
        self,
        name: str,
        items: Sequence[NewItem],
        *,
        tags: Mapping[str, str] | None = None,
        expected_seq: int | None = None,
        value: Any = msgspec.UNSET,
        expected_version: int | None = None,
    ) -> tuple[SessionInfo, list[Entry]]:
        """Append all or nothing; the session as it is then, and what was appended.

        tags: makes the session with these, where there is none. expected_seq, expected_version: the session is to be
        there, or ``LogConflict``; 0: it is to be empty, or to be made. value: replaces the one that it has.
        """
        for item in items:
            if len((item.key or "").encode("utf-8", "replace")) > KEY_MAX_BYTES:
                raise InvalidValue(f"the key of an entry has more than {KEY_MAX_BYTES} bytes", hint="Give its digest.")
        for tried in range(TRIES):
            head = await self._writable(name, tags)
            wanted = await self._new_ones(head, items)
            at = head.seq if expected_seq is None and any(item.once for item in items) else expected_seq
            new = None
            if value is not msgspec.UNSET:
                version = head.version if expected_version is None else expected_version
                new = NewHead(expected_version=version, value={**head.value, "value": value})
            elif expected_version is not None:
                new = NewHead(expected_version=expected_version, value=head.value)
            if not wanted and new is None and at in (None, head.seq):
                return _info(head), []
            try:
                packed = Packed(wanted, new)
                job = Append(head.run_id, packed, epoch=head.epoch, branch=None, expected_seq=at)
                entries = await self._log.write(head.run_id, job)
            except StaleEpoch:
                continue  # it was deleted meanwhile
            except LogConflict as error:
                is_ours = expected_version is not None if "version" in error.details else expected_seq is not None
                if is_ours or tried == TRIES - 1:
                    hint = "Another program wrote to it: read what is new, then try again."
                    raise LogConflict(f"session {name!r}: {_said(error)}", hint=hint, **error.details) from error
                continue
            seq = entries[-1].seq if entries else head.seq
            version = head.version if new is None else new.expected_version + 1
            after = head if new is None else msgspec.structs.replace(head, value=new.value)
            return _info(msgspec.structs.replace(after, seq=seq, version=version)), entries
        raise LogConflict(f"session {name!r} is deleted again and again", hint="Another program uses this name.")

    async def _writable(self, name: str, tags: Mapping[str, str] | None) -> Head:
        if tags is None:
            return await self._head(name)
        _check(name, tags)
        found = await self._found(name)
        if found is None:
            found = await self._log.create(new_id(), _summary(name, tags, None), key=_key(name))
        return found

    async def _new_ones(self, head: Head, items: Sequence[NewItem]) -> list[NewItem]:
        keys = [item.key for item in items if item.once and item.key is not None]
        there = {entry.key for entry in await self._find(head.run_id, keys, expand=False)} if keys else set()
        wanted: list[NewItem] = []
        for item in items:
            if item.once and item.key in there:
                continue
            wanted.append(item)
            there |= {item.key} if item.once else set()
        return wanted

    async def read(
        self, name: str, *, after: int = 0, limit: int = PAGE, kind: str | None = None, expand: bool = True
    ) -> list[Entry]:
        """One page, entries with seq > ``after``, of all kinds or one."""
        head = await self._head(name)
        return await self._log.read(head.run_id, branch=head.branch, after=after, limit=limit, kind=kind, expand=expand)

    async def newest(
        self,
        name: str,
        *,
        before: int | None = None,
        limit: int = PAGE,
        kind: str | None = None,
        key: str | None = None,
        expand: bool = True,
    ) -> list[Entry]:
        """One page, the newest first, entries with seq < ``before``."""
        head = await self._head(name)
        rows: list[tuple[Any, ...]] = []
        by_key = self._log.by_key
        query = queries.OWN_NEWEST if key is None else by_key.newest
        for stretch in await self._log.lineage(head.run_id):
            upto = stretch.upto if before is None else min(stretch.upto, before - 1)
            where = {"run_id": stretch.run_id, "branch": stretch.branch, "after": stretch.fork_seq, "upto": upto}
            if upto <= stretch.fork_seq or len(rows) >= limit:
                continue
            if key is None or not by_key.has or await self._log.rows(by_key.has, {**where, "key": key}):
                rows += await self._log.rows(query, {**where, "kind": kind, "key": key, "limit": limit - len(rows)})
        return await self._log.entries_of(rows, expand=expand)

    async def find(self, name: str, keys: Sequence[str], *, expand: bool = True) -> list[Entry]:
        """All entries with one of these keys, in order."""
        if len(keys) > KEYS_MAX:
            raise InvalidValue(f"{len(keys)} keys", hint=f"At most {KEYS_MAX} at once.")
        return await self._find((await self._head(name)).run_id, keys, expand=expand)

    async def _find(self, run_id: str, keys: Sequence[str], *, expand: bool) -> list[Entry]:
        rows: list[tuple[Any, ...]] = []
        for first in range(0, len(keys), AT_ONCE):
            some = {f"key{number}": key for number, key in enumerate(keys[first : first + AT_ONCE])}
            rows += await self._log.rows(self._log.by_key.some(len(some)), {"run_id": run_id, "branch": None, **some})
        return await self._log.entries_of(sorted(rows, key=lambda row: int(row[2])), expand=expand)

    async def fork(
        self,
        name: str,
        new_name: str,
        *,
        at: int | None = None,
        tags: Mapping[str, str] | None = None,
        value: Any = msgspec.UNSET,
    ) -> SessionInfo:
        """Another session that shares the entries up to ``at`` (None: all), and begins with an entry ``forked``. tags
        and value: those of the first, where none are given. ``Conflict``: there is one of this name."""
        head = await self._head(name)
        shown = _info(head)
        tags = shown.tags if tags is None else tags
        _check(new_name, tags)
        seq = head.seq if at is None else at
        origin = {"session": name, "seq": seq}
        summary = {**_summary(new_name, tags, shown.value if value is msgspec.UNSET else value), "origin": origin}
        if await self._found(new_name) is not None:
            raise _is_there(new_name)
        job = BranchOff(
            new_id(),
            summary,
            Packed([NewEntry(kind="forked", payload=origin)], None),
            parent_run=head.run_id,
            parent=head.branch,
            fork_seq=seq,
            epoch=0,
            key=_key(new_name),
        )
        try:
            return _info(await self._log.submit(job))
        except ProtocolError:
            await self._head(name)  # NotFound: it was deleted meanwhile
            raise
        except Conflict as error:
            raise _is_there(new_name) from error

    async def keep(
        self, name: str, seqs: Sequence[int], *, expected_seq: int, value: Any = msgspec.UNSET
    ) -> SessionInfo:
        """Only these entries stay, in their order, numbered anew from 1; the others are gone. ``LogConflict``: somebody
        appended meanwhile."""
        head, wanted = await self._head(name), set(seqs)
        kept: list[NewEntry] = []
        for first in sorted({(seq - 1) // PAGE for seq in wanted if seq > 0}):
            page = await self._log.read(head.run_id, branch=head.branch, after=first * PAGE, limit=PAGE)
            kept += [NewEntry(kind=e.kind, key=e.key, payload=e.payload) for e in page if e.seq in wanted]
        if len(kept) != len(wanted):
            raise InvalidValue(f"session {name!r} has entries 1 to {head.seq}, not all of those that are to be kept")
        summary = head.value if value is msgspec.UNSET else {**head.value, "value": value}
        summary = {field: what for field, what in summary.items() if field != "origin"}
        job = Replace(
            head.run_id,
            new_id(),
            _key(name),
            summary,
            kept,
            epoch=head.epoch,
            expected_seq=expected_seq,
            expected_version=head.version,
        )
        above = await self._above(head)
        try:
            await self._log.write(head.run_id, job)
        except StaleEpoch:
            raise _no_session(name) from None
        await self._collect(above)
        return await self.get(name)

    async def delete(self, name: str) -> None:
        """It is gone, and its name is free; what its forks share stays for them."""
        head = await self._head(name)
        above = await self._above(head)
        try:
            await self._log.submit(Forget(head.run_id, head.epoch))
        except StaleEpoch:
            raise _no_session(name) from None
        await self._collect(above)

    async def _above(self, head: Head) -> list[str]:
        """The sessions whose entries it shares, nearest first."""
        return [stretch.run_id for stretch in await self._log.lineage(head.run_id) if stretch.run_id != head.run_id]

    async def _collect(self, run_ids: Sequence[str]) -> None:
        """Those that were deleted before go, where nothing shares them any more."""
        for run_id in run_ids:
            head = await self._log.head(run_id)
            if head.value.get("state") == GONE and not head.pruned:
                await self._log.submit(Forget(run_id, head.epoch))

    async def _found(self, name: str) -> Head | None:
        return await self._log.head_of_key(_key(name))

    async def _head(self, name: str) -> Head:
        found = await self._found(name)
        if found is None:
            raise _no_session(name)
        return found


def _no_session(name: str) -> NotFound:
    return NotFound(f"no such session: {name!r}", hint="Its name is that which it was made with.")


def _is_there(name: str) -> Conflict:
    return Conflict(f"there is a session {name!r} already", hint="Take another name, or delete that one.")


def _said(error: LogConflict) -> str:
    if "seq" in error.details:
        return f"it is at entry {error.details['seq']}, not where it was expected"
    return f"its value was changed meanwhile (version {error.details.get('version')})"


def _key(name: str) -> str:
    """No key of a run begins so: those are lists, in JSON."""
    return f"session:{name}"


def _summary(name: str, tags: Mapping[str, str], value: Any) -> dict[str, Any]:
    return {"state": SESSION, "released": True, "request": {"name": name, "tags": dict(tags)}, "value": value}


def _check(name: str, tags: Mapping[str, str]) -> None:
    for what, text in (("name of a session", name), *((f"tag {tag!r}", tag + text) for tag, text in tags.items())):
        size = len(text.encode("utf-8", "replace"))
        if "=" in what:
            raise InvalidValue(f"{what} has '=' in its name", hint="`?tag=NAME=VALUE` would not know it.")
        if not text or size > NAME_MAX_BYTES or "\0" in text or text.encode("utf-8", "replace").decode() != text:
            hint = f"It is text of 1 to {NAME_MAX_BYTES} bytes, without NUL."
            raise InvalidValue(f"not the {what}: {text[:40]!r} ({size} bytes)", hint=hint)
    if len(tags) > TAGS_MAX:
        raise InvalidValue(f"{len(tags)} tags", hint=f"A session has at most {TAGS_MAX}.")


def _info(head: Head) -> SessionInfo:
    return SessionInfo(
        id=head.run_id,
        name=head.value["request"]["name"],
        created=head.created,
        seq=head.seq,
        version=head.version,
        tags=head.value["request"]["tags"],
        value=head.value.get("value"),
        origin=head.value.get("origin"),
    )
