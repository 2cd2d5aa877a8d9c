"""The part of the node's API that looks into sandboxes and takes them out: pause, stats, top, diff, export."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec
from aiohttp import web

from perdure.execution.sandboxes import committing, exporting, measuring, reading, trees
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.host.progress import Progress
from perdure.model import Frozen, ImageInfo, SandboxState
from perdure.node.answers import body, long, ok, sent

_SHOWN = (SandboxState.RUNNING, SandboxState.PAUSED, SandboxState.SUSPENDED)  # what `stats` shows without -a
CONTENT_MAX_BYTES = 1 << 20


class _Commit(Frozen, frozen=True, kw_only=True):
    name: str = ""
    author: str = ""
    message: str = ""
    changes: list[str] = msgspec.field(default_factory=list)
    pause: bool = True


class Views:
    """Handlers."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    def routes(self) -> Iterable[web.RouteDef]:
        one = "/v1/sandboxes/{ref}"
        return [
            web.post(one + "/pause", self.pause),
            web.post(one + "/unpause", self.unpause),
            web.get(one + "/top", self.top),
            web.get(one + "/changes", self.changes),
            web.get(one + "/changes/content", self.content),
            web.get(one + "/export", self.export),
            web.post(one + "/commit", self.commit),
            web.get("/v1/stats", self.stats),
        ]

    def _find(self, request: web.Request) -> Sandbox:
        return self._sandboxes.find(request.match_info["ref"])

    async def pause(self, request: web.Request) -> web.StreamResponse:
        sandbox = self._find(request)
        return await long(request, lambda _: sandbox.pause())

    async def unpause(self, request: web.Request) -> web.StreamResponse:
        sandbox = self._find(request)
        return await long(request, lambda _: sandbox.unpause())

    async def top(self, request: web.Request) -> web.Response:
        return ok(await measuring.processes_of(self._find(request)))

    async def stats(self, request: web.Request) -> web.Response:
        """All at once: one that is slow to answer keeps nobody waiting for long."""
        wanted = request.query.getall("sandbox", [])
        everything = request.query.get("all") == "1"
        found = (
            [self._sandboxes.find(ref) for ref in wanted]
            if wanted
            else [sandbox for sandbox in self._sandboxes.all() if everything or sandbox.state in _SHOWN]
        )
        return ok(await asyncio.gather(*(measuring.usage_of(sandbox) for sandbox in found)))

    async def changes(self, request: web.Request) -> web.StreamResponse:
        is_detailed = request.query.get("details") == "1"
        async with reading.tree_of(self._find(request)) as tree:
            found = tree.changes(content=is_detailed)
            return ok(await (trees.detailed(found) if is_detailed else trees.changes(found)))

    async def content(self, request: web.Request) -> web.StreamResponse:
        path = request.query.get("path", "")
        async with reading.tree_of(self._find(request)) as tree:
            content = await trees.content_of(tree.changes(content=True), path, CONTENT_MAX_BYTES)
        return web.Response(body=content, content_type="application/octet-stream")

    async def export(self, request: web.Request) -> web.StreamResponse:
        return await sent(request, exporting.export(self._find(request)))

    async def commit(self, request: web.Request) -> web.StreamResponse:
        sandbox, wish = self._find(request), await body(request, _Commit)

        async def work(progress: Progress) -> ImageInfo:
            image = await committing.commit(
                sandbox,
                wish.name,
                author=wish.author,
                message=wish.message,
                instructions=wish.changes,
                still=wish.pause,
                progress=progress,
            )
            self._sandboxes.tell("image.added", name=image.name, digest=image.digest)
            return ImageInfo(name=image.name, digest=image.digest, size_bytes=image.size_bytes, created=image.created)

        return await long(request, work, 201)
