"""The part of the node's API that moves snapshots between its store and stores beyond this machine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from aiohttp import web

from perdure.errors import Conflict, NotFound, PerdureError
from perdure.execution.registry.contract import RemoteStore, check_tag
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.execution.snapshots import transfer
from perdure.execution.snapshots.stores import archive, open_store
from perdure.formats.manifest import Snapshot
from perdure.host import headroom
from perdure.host.paths import Home
from perdure.host.progress import Progress
from perdure.model import Frozen
from perdure.node import uploads
from perdure.node.answers import body, long, sent
from perdure.reports import Evicted, Pulled, Pushed

AT_ONCE = 8  # others wait for one to end; each has threads of its own for what it reads
_LISTED = 8  # tags in a message

T = TypeVar("T")


class _Push(Frozen, frozen=True, kw_only=True):
    url: str
    tag: str = ""


class _Pull(Frozen, frozen=True, kw_only=True):
    url: str
    reference: str  # a tag, or a manifest's digest
    lazy: bool = False


class _Evict(Frozen, frozen=True, kw_only=True):
    url: str = ""  # empty: the store that it was pushed to last


class Transfers:
    """Handlers. ``find`` gives the digest that a request's path means."""

    def __init__(self, home: Home, sandboxes: Sandboxes, find: Callable[[web.Request], Awaitable[str]]) -> None:
        self._home = home
        self._sandboxes = sandboxes
        self._store = sandboxes.store
        self._find = find
        # They wait for other machines, for minutes where these stall: the loop's own threads are everybody's.
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="transfer")

    def routes(self) -> Iterable[web.RouteDef]:
        one = "/v1/snapshots/{ref}"
        return [
            web.post(one + "/push", self.push),
            web.post(one + "/evict", self.evict),
            web.post("/v1/store/pull", self.pull),
            web.get(one + "/export", self.export),
            web.post("/v1/store/import", self.import_),
        ]

    async def push(self, request: web.Request) -> web.StreamResponse:
        digest, wish = await self._find(request), await body(request, _Push)
        tag = check_tag(wish.tag or transfer.tag_of(digest))

        def work(snapshot: Snapshot, remote: RemoteStore, progress: Progress) -> Pushed:
            images = self._sandboxes.images
            done = transfer.push(self._store, self._home.templates, images, snapshot, remote, tag, progress)
            return Pushed(digest, remote.url, tag, done.sent_bytes, done.held_bytes)

        return await long(request, lambda progress: self._reading(digest, wish.url, work, progress))

    async def evict(self, request: web.Request) -> web.StreamResponse:
        digest, wish = await self._find(request), await body(request, _Evict)
        snapshot = await asyncio.to_thread(self._store.get, digest)
        url = wish.url or await asyncio.to_thread(transfer.pushed_to, self._store, snapshot)
        if not url:
            raise Conflict(
                f"snapshot {digest} has no memory here that was pushed", hint="Push it first: fcrun snapshot push"
            )

        def work(_: Progress) -> Evicted:
            with _opened(url) as remote, headroom.given(self._home):
                return Evicted(digest, remote.url, transfer.evict(self._store, snapshot, remote))

        return await long(request, lambda progress: self._threaded(lambda: work(progress)))

    async def pull(self, request: web.Request) -> web.StreamResponse:
        wish = await body(request, _Pull)
        if not wish.reference.startswith("sha256:"):
            check_tag(wish.reference)
        bring = transfer.attach if wish.lazy else transfer.pull

        def work(progress: Progress) -> Snapshot:
            images = self._sandboxes.images
            with _opened(wish.url) as remote:
                try:
                    return bring(
                        self._store, self._home.templates, images, remote, wish.reference, progress, is_kept=True
                    )
                except NotFound as error:
                    raise self._with_hint(error, remote, wish.reference) from None

        async def whole(progress: Progress) -> Pulled:
            snapshot = await self._threaded(lambda: work(progress))
            await asyncio.to_thread(self._sandboxes.needs.let_go_if_named, snapshot.digest)
            self._sandboxes.tell("snapshot.pulled", digest=snapshot.digest, url=wish.url)
            away = [layer for layer in snapshot.memory.layers if not self._store.blob_path(layer.digest).exists()]
            elsewhere = sum(layer.size for layer in away)
            return Pulled(snapshot.digest, wish.url, wish.reference, snapshot.config.sandbox_id, elsewhere)

        return await long(request, whole)

    async def export(self, request: web.Request) -> web.StreamResponse:
        digest = await self._find(request)
        with contextlib.ExitStack() as held:
            await asyncio.to_thread(held.enter_context, self._store.reading(digest))
            snapshot = await asyncio.to_thread(self._store.get, digest)
            images, templates = self._sandboxes.images, self._home.templates
            parcels = await asyncio.to_thread(
                held.enter_context, transfer.packed(self._store, templates, images, snapshot)
            )
            return await sent(request, self._pieces(archive.write(parcels)))

    async def _pieces(self, blocking: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
        while data := await self._threaded(lambda: next(blocking, b"")):
            yield data

    async def import_(self, request: web.Request) -> web.StreamResponse:
        received = await uploads.received(self._home, request)

        def work(progress: Progress) -> Snapshot:
            with contextlib.closing(archive.ArchiveStore(received)) as remote:
                return transfer.pull(
                    self._store,
                    self._home.templates,
                    self._sandboxes.images,
                    remote,
                    archive.tag_of(remote),
                    progress,
                    is_kept=True,
                )

        async def whole(progress: Progress) -> Pulled:
            try:
                snapshot = await self._threaded(lambda: work(progress))
            finally:
                await asyncio.to_thread(uploads.forget, received)
            await asyncio.to_thread(self._sandboxes.needs.let_go_if_named, snapshot.digest)
            self._sandboxes.tell("snapshot.imported", digest=snapshot.digest)
            return Pulled(snapshot.digest, "", "", snapshot.config.sandbox_id, 0)

        return await long(request, whole)

    def _with_hint(self, error: NotFound, remote: RemoteStore, reference: str) -> PerdureError:
        """The same, saying what to do: which tags there are, or how a snapshot of this node comes to be there."""
        if not reference.startswith("sha256:"):
            return _with_tags(error, remote, reference)
        try:
            if reference in self._store.digests():
                remote.manifest(reference)
        except NotFound:
            push = f"fcrun snapshot push {reference} {remote.url}"
            return NotFound(error.message, hint=f"It was never pushed there, at most a part of it: {push}")
        except PerdureError:
            pass
        return error

    async def _reading(
        self, digest: str, url: str, work: Callable[[Snapshot, RemoteStore, Progress], T], progress: Progress
    ) -> T:
        """Nothing of the snapshot is deleted meanwhile."""

        def threaded() -> T:
            with self._store.reading(digest), _opened(url) as remote:
                return work(self._store.get(digest), remote, progress)

        return await self._threaded(threaded)

    async def _threaded(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


@contextlib.contextmanager
def _opened(url: str) -> Iterator[RemoteStore]:
    remote = open_store(url)
    try:
        yield remote
    finally:
        remote.close()


def _with_tags(error: NotFound, remote: RemoteStore, reference: str) -> PerdureError:
    """The same, naming what there is instead."""
    try:
        tags = remote.tags()
    except PerdureError:
        return error
    if reference in tags:
        return error
    own = [tag for tag in tags if not tag.startswith(transfer.INTERNAL_TAGS)]
    hint = f"It has: {', '.join(own[:_LISTED])}{' …' if len(own) > _LISTED else ''}" if own else "It has no snapshot."
    return NotFound(f"{remote.url} has no snapshot tagged {reference}", hint=hint)
