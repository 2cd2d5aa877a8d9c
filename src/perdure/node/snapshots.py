"""The part of the node's API that is about stored snapshots and the store as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
from aiohttp import web

from perdure.errors import Conflict, NotFound, PerdureError, Unsupported
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.execution.snapshots import transfer
from perdure.execution.snapshots.care import explain, garbage, tree, verify
from perdure.execution.snapshots.care.verify import RealRestore
from perdure.execution.snapshots.store import Store
from perdure.formats import manifest
from perdure.formats.manifest import Snapshot
from perdure.host import headroom
from perdure.host.paths import Home
from perdure.host.progress import Progress
from perdure.model import Frozen
from perdure.node.answers import body, long, ok
from perdure.node.transfers import Transfers
from perdure.reports import Compaction, SnapshotSummary

_LISTED = "`fcrun snapshot ls` lists all."


class _Verify(Frozen, frozen=True, kw_only=True):
    thorough: bool = False


class _Collect(Frozen, frozen=True, kw_only=True):
    dry_run: bool = False


class Snapshots:
    """Handlers. ``real_restore`` is what a thorough verification restores with."""

    def __init__(self, home: Home, sandboxes: Sandboxes, real_restore: RealRestore | None = None) -> None:
        self._home = home
        self._sandboxes = sandboxes
        self._store: Store = sandboxes.store
        self._real_restore = real_restore

    def routes(self) -> Iterable[web.RouteDef]:
        one = "/v1/snapshots/{ref}"
        return [
            web.get("/v1/snapshots", self.list),
            web.get(one, self.inspect),
            web.delete(one, self.remove),
            web.post(one + "/verify", self.verify),
            web.post(one + "/explain", self.explain),
            web.post(one + "/compact", self.compact),
            web.get("/v1/store/tree", self.tree),
            web.post("/v1/store/verify", self.verify_all),
            web.post("/v1/store/collect", self.collect),
            *Transfers(self._home, self._sandboxes, self._find).routes(),
        ]

    # -- finding ------------------------------------------------------------------------------------------------------
    async def _find(self, request: web.Request) -> str:
        """The digest that REF means: itself, a tag, a sandbox (its newest snapshot), or a unique beginning."""
        digests, tags = await asyncio.to_thread(lambda: (self._store.digests(), self._store.tags()))
        shown = [digest for digest in digests if self._sandboxes.shows(digest)]
        return self._digest(request.match_info["ref"], shown, tags)

    def _digest(self, ref: str, digests: _Texts, tags: dict[str, str]) -> str:
        hexadecimal = ref.removeprefix("sha256:")
        exact = f"sha256:{hexadecimal}"
        if exact in digests:
            return exact
        if tags.get(ref) in digests:
            return tags[ref]
        matches = [digest for digest in digests if hexadecimal and digest.startswith(exact)]
        sandbox = None if ref.startswith("sha256:") else self._sandbox(ref)
        if sandbox is not None and ref not in (sandbox.id, sandbox.name) and matches:
            raise Conflict(
                f"{ref!r} is ambiguous: it could be snapshot {matches[0]} or sandbox {sandbox.id}",
                hint="Give more digits, or sha256: before those of a snapshot.",
            )
        if sandbox is not None:
            return _newest(sandbox)
        if len(matches) > 1:
            listed = ", ".join(digest.removeprefix("sha256:")[:12] for digest in sorted(matches))
            raise Conflict(f"{ref!r} is ambiguous: it could be {listed}", hint="Give more digits of the digest.")
        if matches:
            return matches[0]
        for sandbox in self._sandboxes.all():  # one that was compacted since: its former digests mean it still
            if (kept := sandbox.record.snapshot(hexadecimal)) is not None:
                return kept.info.digest
        raise NotFound(f"no such snapshot or sandbox: {ref}", hint=_LISTED)

    def _sandbox(self, ref: str) -> Sandbox | None:
        try:
            return self._sandboxes.find(ref)
        except NotFound:
            return None

    def _owner(self, digest: str, ref: str) -> Sandbox | None:
        """The sandbox that has it among its snapshots; of several (forks) the one that was asked for by name, else the
        one it is of."""
        having = {
            sandbox: kept.info.sandbox_id == sandbox.id
            for sandbox in self._sandboxes.all()
            for kept in sandbox.record.snapshots
            if kept.info.digest == digest
        }
        asked = self._sandbox(ref)
        if asked in having:
            return asked
        return max(having, key=having.__getitem__, default=None)

    def _names(self) -> dict[str, str]:
        return {sandbox.id: sandbox.name for sandbox in self._sandboxes.all()}

    # -- looking ------------------------------------------------------------------------------------------------------
    async def list(self, request: web.Request) -> web.Response:
        wanted = request.query.get("sandbox")
        sandbox = self._sandboxes.find(wanted).id if wanted is not None else None
        every = await asyncio.to_thread(self._summaries)
        return ok([one for one in reversed(every) if sandbox in (None, one.sandbox_id)])

    def _summaries(self) -> _Summaries:
        names, tags = self._names(), _by_digest(self._store.tags())
        found: list[SnapshotSummary] = []
        replaced: dict[str, str] = {}
        for digest in filter(self._sandboxes.shows, self._store.digests()):
            try:
                snapshot = self._store.get(digest)
                found.append(self._summary(snapshot, names, tags))
                replaced |= dict.fromkeys(snapshot.config.replaces, digest)
            except (PerdureError, OSError) as error:
                found.append(SnapshotSummary(digest=digest, problem=getattr(error, "message", str(error))))
        return [msgspec.structs.replace(one, parent=replaced.get(one.parent, one.parent)) for one in found]

    def _summary(self, snapshot: Snapshot, names: dict[str, str], tags: dict[str, _Texts]) -> SnapshotSummary:
        config = snapshot.config
        data, described = manifest.encode(snapshot)
        sizes = {blob.digest: blob.size for blob in snapshot.descriptors}
        return SnapshotSummary(
            digest=snapshot.digest,
            sandbox_id=config.sandbox_id,
            sandbox_name=names.get(config.sandbox_id, ""),
            created=config.created,
            parent=config.parent or config.template,
            memory_layers=len(snapshot.memory.layers),
            disk_layers=len(snapshot.disk.layers),
            stored_bytes=snapshot.info().stored_bytes,
            total_bytes=sum(sizes.values()) + len(data) + len(described),
            tags=tags.get(snapshot.digest, []),
        )

    async def inspect(self, request: web.Request) -> web.Response:
        digest = await self._find(request)

        def look() -> dict[str, Any]:
            snapshot = self._store.get(digest)
            names = [one.name for one in self._sandboxes.all() if one.record.names(digest)]
            found: dict[str, Any] = msgspec.to_builtins(snapshot)
            return found | {
                "named_by": names,
                "tags": _by_digest(self._store.tags()).get(digest, []),
                "working_set_blocks": len(self._store.working_set(digest)),
            }

        return ok(await asyncio.to_thread(look))

    async def tree(self, request: web.Request) -> web.Response:
        def grow() -> Any:
            found = []
            for digest in filter(self._sandboxes.shows, self._store.digests()):
                try:
                    found.append(self._store.get(digest))
                except (PerdureError, OSError):
                    continue  # `ls` and `verify` say so; where it stands is not known
            return tree.grow(found, names=self._names(), tags=_by_digest(self._store.tags()))

        return ok(await asyncio.to_thread(grow))

    # -- working ------------------------------------------------------------------------------------------------------
    async def verify(self, request: web.Request) -> web.StreamResponse:
        digest = await self._find(request)
        return await self._verified(request, lambda **more: verify.snapshot(self._store, digest, **more))

    async def verify_all(self, request: web.Request) -> web.StreamResponse:
        return await self._verified(request, lambda **more: verify.whole(self._store, **more))

    async def _verified(self, request: web.Request, check: Callable[..., Any]) -> web.StreamResponse:
        wish = await body(request, _Verify)
        if wish.thorough and self._real_restore is None:
            raise Unsupported("this node cannot restore a snapshot to verify it", hint="Verify it without --thorough.")

        async def work(progress: Progress) -> Any:
            more: dict[str, Any] = {
                "templates": self._home.templates,
                "facts": await self._sandboxes.ground.facts(),
                "restore": self._real_restore if wish.thorough else None,
                "progress": progress,
            }
            return await asyncio.to_thread(lambda: check(**more))

        return await long(request, work)

    async def explain(self, request: web.Request) -> web.StreamResponse:
        digest = await self._find(request)
        return await long(
            request,
            _threaded(
                lambda progress: explain.explain(
                    self._store, digest, templates_folder=self._home.templates, progress=progress
                )
            ),
        )

    async def compact(self, request: web.Request) -> web.StreamResponse:
        digest = await self._find(request)
        sandbox = self._owner(digest, request.match_info["ref"])
        if sandbox is None:
            raise Conflict(f"no sandbox has snapshot {digest}: nobody would name the compacted one", hint=_LISTED)

        async def work(progress: Progress) -> Any:
            done = await sandbox.compact(digest, progress)
            names, tags = self._names(), _by_digest(self._store.tags())
            return Compaction(
                before=self._summary(done.before, names, tags),
                after=self._summary(done.after, names, tags),
                freed_bytes=done.freed_bytes,
            )

        return await long(request, work)

    async def remove(self, request: web.Request) -> web.Response:
        digest, force = await self._find(request), request.query.get("force") == "1"
        kept = transfer.kept_tag(digest)  # by a pull, for nobody else
        if tags := [tag for tag in _by_digest(self._store.tags()).get(digest, []) if tag != kept]:
            raise Conflict(f"snapshot {digest} is tagged {', '.join(tags)}", hint="A tag keeps it.")
        named = request.query.get("sandbox")
        sandbox = self._sandboxes.find(named) if named else self._owner(digest, request.match_info["ref"])
        if sandbox is not None:
            with headroom.given(self._home):
                await asyncio.to_thread(self._store.untag, kept)
            freed = await asyncio.shield(asyncio.ensure_future(sandbox.forget(digest, force=force)))
        elif await asyncio.to_thread(self._sandboxes.needs.names, digest):
            users = ", ".join(one.name for one in self._sandboxes.all() if one.record.names(digest))
            raise Conflict(
                f"snapshot {digest} is in use by {users or 'a sandbox that is being suspended'}",
                hint="Remove these sandboxes first: fcrun rm" if users else "Try again when that is done.",
            )
        else:
            with headroom.given(self._home):  # with its tag, or, while it is leased, neither
                freed = await asyncio.to_thread(self._store.remove, [digest])
            if digest in await asyncio.to_thread(self._store.digests):
                raise Conflict(f"snapshot {digest} is being read", hint="Try again when that is done.")
        self._sandboxes.tell("snapshot.removed", digest=digest, freed_bytes=freed)
        return ok({"digest": digest, "freed_bytes": freed})

    async def collect(self, request: web.Request) -> web.StreamResponse:
        wish = await body(request, _Collect)

        def work(progress: Progress) -> Any:
            with headroom.given(self._home):
                return garbage.collect(
                    self._store,
                    named=self._sandboxes.needs.names,
                    templates=self._home.templates,
                    templates_in_use=self._sandboxes.needs.templates_in_use,
                    dry_run=wish.dry_run,
                    progress=progress,
                )

        return await long(request, _threaded(work))


_Summaries = list[SnapshotSummary]  # Snapshots.list hides the builtin inside the class
_Texts = list[str]


def _threaded(work: Callable[[Progress], Any]) -> Callable[[Progress], Awaitable[Any]]:
    return lambda progress: asyncio.to_thread(work, progress)


def _by_digest(tags: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for tag, digest in sorted(tags.items()):
        found.setdefault(digest, []).append(tag)
    return found


def _newest(sandbox: Sandbox) -> str:
    info = sandbox.info().snapshot
    if info is None:
        raise NotFound(
            f"sandbox {sandbox.name} has no snapshot", hint=f"Suspend it to make one: fcrun suspend {sandbox.name}"
        )
    return info.digest
