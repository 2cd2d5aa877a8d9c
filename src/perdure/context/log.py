"""The context log: per run an append-only, hash-chained, branching sequence of entries. The contract of every backend.

The kinds of entries are in ``context.points``, their payloads in ``docs/formats/context-log.md``.

A session (``context.sessions``) is such a log, too, without a run; its entries are of kinds that its programs choose.

The first entry of a call has its ``key`` and ``payload["request"]`` = ``request_hash(call)``. ``runs.calls`` compares
that hash before it hands a model call to the gateway, and forks the branch where it differs; the gateway then only
looks up ``find(run_id, branch, call.key)``.

Who writes in which epoch: what a guest asks for is appended with ``epoch=call.epoch`` (refused once a newer epoch owns
the run); what the host finishes by itself (the answer of a provider that was asked already, a signal, an approval) is
appended with ``epoch=None``: in whatever epoch the run now is.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from perdure.context.leases import Leases
from perdure.formats.chain import canonical as canonical
from perdure.formats.chain import digest_of as digest_of
from perdure.model import Call, Entry, Frozen, Spent

if TYPE_CHECKING:
    from perdure.context.sessions import Sessions

ROOT_BRANCH = 1
NO_TAGS: Mapping[str, str] = MappingProxyType({})


class NewEntry(Frozen, frozen=True, kw_only=True):
    """An entry to append; the log gives it seq, branch, epoch, time and hash. ``payload`` is any JSON value."""

    kind: str
    payload: Any = None
    key: str | None = None
    is_copy: bool = False  # of an entry of another branch: what that cost is counted there
    joint: tuple[tuple[str, str], ...] = ()  # the end of a turn: name and period of budgets that it counts in, too


class Branch(Frozen, frozen=True, kw_only=True):
    """One branch of a run: it shares its parent's entries up to and including ``fork_seq``."""

    branch: int
    parent: int | None = None
    fork_seq: int = 0
    seq: int = 0  # of its last entry
    parent_run: str | None = None  # None: this run; else ``parent`` is a branch of that one


class Stretch(Frozen, frozen=True, kw_only=True):
    """What one branch gives to those below it: its own entries after ``fork_seq``, up to and including ``upto``."""

    run_id: str
    branch: int
    fork_seq: int
    upto: int


class Head(Frozen, frozen=True, kw_only=True):
    """The tip of a run: its fence, its current branch, and the owner's summary (``value``), versioned for
    compare-and-set."""

    run_id: str
    key: str | None
    created: float
    epoch: int
    branch: int
    seq: int  # of the last entry of the current branch
    version: int
    value: Any
    pruned: bool = False  # its entries were dropped
    turns_asked: int = 0  # entries ``model.started`` of all its own branches, also of those that were dropped since
    turns_replayed: int = 0  # the same of ``model.replayed``
    spent: Spent = Spent()


class NewHead(Frozen, frozen=True, kw_only=True):
    """Replace a run's summary in the same transaction as an append, if its version is still ``expected_version``."""

    expected_version: int
    value: Any


class Kept(Frozen, frozen=True, kw_only=True):
    """Something that the log's owner keeps beside the runs (a queue, a schedule …): a JSON value by kind and name."""

    kind: str
    name: str
    version: int  # from 1, for compare-and-set
    value: Any


class Beside(Frozen, frozen=True, kw_only=True):
    """What is kept beside the runs by a name, and changes in the same transaction as an append; ``value`` None: it is
    dropped. ``expected_version`` as for ``ContextLog.keep``."""

    kind: str
    name: str
    value: Any
    expected_version: int | None = None


class Verification(Frozen, frozen=True, kw_only=True):
    """What ``verify`` looked at. It raises ``ProtocolError`` at the first entry or blob that is not what it was."""

    entries: int
    branches: int
    blobs: int


class Swept(Frozen, frozen=True, kw_only=True):
    """What a sweep removed, and what it will remove next time if nothing refers to it until then."""

    blobs: int
    stored_bytes: int
    next_blobs: int


class ContextLog(Protocol):
    """Durable when it returns: an acknowledged entry is never lost, changed or reordered."""

    @property
    def sessions(self) -> Sessions: ...

    @property
    def leases(self) -> Leases | None:
        """Of the servers that have it open; None: this process is the only one."""
        ...

    async def create(self, run_id: str, value: Any, *, key: str | None = None, replacing: str | None = None) -> Head:
        """A new run with an empty log (epoch 0, branch 1). With a ``key`` that exists: the head of that older run
        (compare ``run_id``), unless that is the run ``replacing``, which gives the key up. ``Conflict`` when the id
        exists."""
        ...

    async def head(self, run_id: str) -> Head:
        """``NotFound`` names the run."""
        ...

    async def head_of_key(self, key: str) -> Head | None:
        """The run that was created with this key; None: there is none."""
        ...

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
        """Runs, oldest first (``newest``: last first): those that have all of what is asked for.

        prefix: of the id. below: children and forks of these; forks_of: forks alone. ids, below, forks_of: some
        thousands at most. pruned: as ``Head`` has it. The other words are those of the summary (``context.listing``).
        beyond: the id of the run that the page before ended with.
        """
        ...

    async def states(self) -> dict[str, int]:
        """How many runs are in each state."""
        ...

    async def spent_jointly(self, budget: str, period: str) -> Spent:
        """What entries that name it (``NewEntry.joint``) have cost, of all runs; also of those that were pruned."""
        ...

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
        """Append all or nothing, to ``branch`` (None: the current one).

        ``epoch``: below the run's epoch -> ``StaleEpoch``; above it -> the run is taken over (the fence moves in the
        same transaction); None -> the host's own act, in the epoch that is current. ``expected_seq``: the branch's
        last seq must be this, else ``LogConflict``. ``head``: replaces the summary, or ``LogConflict``.
        ``beside``: what is kept changes with it; the errors of ``keep``. ``blobs``: kept with it, as by ``put_blob``,
        for what names their digests.
        """
        ...

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
        """A new branch that shares ``parent`` up to and including ``fork_seq``, becomes the current one and begins
        with ``new_entries`` (at least one), in one transaction. Epoch, head and beside as for ``append``."""
        ...

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
        """A new run that shares the entries of ``parent``, a branch of another run, up to and including ``fork_seq``
        (nothing is copied, so those entries have the other run's id), and whose branch 1 goes on with ``new_entries``
        (at least one), in one transaction. Its chain goes on from the other run's, its epoch begins as ``epoch``.

        ``NotFound`` names the run or branch, ``InvalidValue`` the seq. ``Conflict`` when the id exists. Whoever removes
        a run keeps the entries that forks share.
        """
        ...

    async def branches(self, run_id: str) -> list[Branch]:
        """The run's own, parents before children."""
        ...

    async def lineage(self, run_id: str, branch: int | None = None) -> list[Stretch]:
        """The way from a branch (None: the current one) up to the root, newest first; over other runs where the run is
        a fork."""
        ...

    async def read(
        self,
        run_id: str,
        *,
        branch: int | None = None,
        after: int = 0,
        limit: int = 1000,
        expand: bool = True,
        kind: str | None = None,
        key: str | None = None,
    ) -> list[Entry]:
        """One page along a branch (None: the current one), entries with seq > ``after``. kind: one, or with a dot at
        its end (``model.``) all that begin so. key: one, or with a slash at its end (``main/``) all of a lane.
        ``expand`` False leaves large values as references (``{"$blob": DIGEST}``, ``{"$list": DIGEST}``)."""
        ...

    async def find(self, run_id: str, branch: int, key: str) -> list[Entry]:
        """All entries of one call along a branch, in order; [] for a new one."""
        ...

    def follow(
        self, run_id: str, *, branch: int | None = None, after: int = 0, expand: bool = True
    ) -> AsyncIterator[Entry]:
        """Entries as they are appended, for ever. With ``branch`` None it goes over to the new branch at a fork
        (and repeats nothing)."""
        ...

    async def keep(self, kind: str, name: str, value: Any, *, expected_version: int | None = None) -> Kept:
        """Keep a value by kind and name. ``expected_version``: 0 for one that is not to be there (``Conflict``), else
        the version that is replaced (``LogConflict``; ``NotFound``); None: whatever is there."""
        ...

    async def kept(self, kind: str, name: str | None = None) -> list[Kept]:
        """All of a kind by name, or the one of this name, or []."""
        ...

    async def drop(self, kind: str, name: str) -> bool:
        """Whether it was there."""
        ...

    async def put_blob(self, content: bytes) -> str:
        """Keep bytes under their digest (``sha256:HEX``); the same bytes are kept once. Durable when it returns."""
        ...

    async def get_blob(self, digest: str) -> bytes:
        """``NotFound`` names the digest; ``ProtocolError`` when the bytes are not what they were."""
        ...

    @property
    def name(self) -> str:
        """Where it is, for people: a path, or a url without its password."""
        ...

    async def remember(self, path: Path) -> None:
        """From now on keep in the file ``path`` what was acknowledged last. ``Conflict``: what the file says was
        acknowledged before is not there: an older backup of the database was restored."""
        ...

    def export(self, run_id: str) -> AsyncGenerator[bytes]:
        """The whole log as lines of JSON (``formats.logfile``): all branches, what is shared with other runs, and the
        blobs."""
        ...

    async def take_up(self, lines: AsyncIterator[bytes], prepare: Callable[[Any], Any] = lambda value: value) -> Head:
        """A run from the lines of an exported log, under its own id; nothing is seen of it before its last line. Into a
        run that was pruned its entries come back, where they are the very same; what its summary is stays.

        prepare: given its summary, returns the one to keep, or raises. ``ProtocolError`` names the line that does not
        verify. ``Conflict``: there is a run of this id, with its log, or pruned of another one than this; or the run
        whose entries it shares is not here.
        """
        ...

    async def prune(self, run_id: str, *, expected_version: int | None = None, kind: str | None = None) -> None:
        """Drop the entries of a run, and all that is kept of this ``kind``; its summary (of ``expected_version``, else
        ``LogConflict``) stays, ``Head.pruned`` says so. ``Conflict``: forks share them. Whether its machine or a
        snapshot still needs them the caller knows."""
        ...

    async def sweep(self) -> Swept:
        """Remove blobs that nothing refers to, and nothing did since the sweep before: what is being written now is
        never in danger."""
        ...

    async def verify(self, run_id: str) -> Verification:
        """Recompute the chain of all its branches, and of what they share with other runs. Its blobs are those that
        ``export`` writes: what entries refer to must be there, what they only mention is read where it is."""
        ...

    async def close(self) -> None: ...


LATE = ("model.started", "model.committed", "model.aborted")  # no call begins with one of these


def valid(entries: list[Entry]) -> list[Entry]:
    """The entries of one call (``find``) without those that do not count any more: the program went another way and the
    run went on live on the same branch. A provider's answer to what was asked before may still come after that."""
    last = next((at for at in range(len(entries) - 1, -1, -1) if entries[at].kind == "overruled"), -1)
    after = entries[last + 1 :]
    begun = next((at for at, entry in enumerate(after) if entry.kind not in LATE), len(after)) if last >= 0 else 0
    return after[begun:]


def request_hash(call: Call) -> str:
    """What a call asks, without when and by whom: method, path and body (JSON bodies by value, not by spelling)."""
    body: Any
    try:
        body = msgspec.json.decode(call.body) if call.body else None
    except (msgspec.DecodeError, RecursionError):
        body = {"$bytes": hashlib.sha256(call.body).hexdigest()}
    asked: Mapping[str, Any] = {"method": call.method, "path": call.path, "body": body}
    return digest_of(canonical(asked))
