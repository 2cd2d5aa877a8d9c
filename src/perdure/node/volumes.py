"""Volumes over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec
from aiohttp import web

from perdure.errors import Conflict, NotFound
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.execution.sandboxes.volumes import anonymous_name, discard
from perdure.host import headroom
from perdure.host.paths import Home
from perdure.model import Frozen
from perdure.node.answers import body, ok


class _Create(Frozen, frozen=True, kw_only=True):
    name: str = ""  # none: one without a name
    size_mib: int | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class _Prune(Frozen, frozen=True, kw_only=True):
    names: list[str] = msgspec.field(default_factory=list)  # those of them that nobody uses


class VolumesApi:
    """Handlers."""

    def __init__(self, home: Home, sandboxes: Sandboxes) -> None:
        self._home, self._sandboxes, self._volumes = home, sandboxes, sandboxes.volumes

    def routes(self) -> Iterable[web.RouteDef]:
        one = "/v1/volumes/{name}"
        return [
            web.get("/v1/volumes", self.list),
            web.post("/v1/volumes", self.create),
            web.post("/v1/volumes/prune", self.prune),
            web.get(one, self.get),
            web.delete(one, self.remove),
        ]

    async def list(self, request: web.Request) -> web.Response:
        return ok(await asyncio.to_thread(self._volumes.list))

    async def get(self, request: web.Request) -> web.Response:
        return ok(self._volumes.get(request.match_info["name"]))

    async def create(self, request: web.Request) -> web.Response:
        wish = await body(request, _Create)
        name = wish.name or anonymous_name()
        making = asyncio.to_thread(self._volumes.create, name, wish.size_mib, wish.labels, anonymous=not wish.name)
        made = await asyncio.shield(asyncio.ensure_future(making))
        self._sandboxes.tell("volume.created", name=name)
        return ok(made, 201)

    async def remove(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        with headroom.given(self._home):
            folder = self._volumes.remove(name)  # in this thread: nobody takes it between the look and the removal
        await asyncio.to_thread(discard, [folder])
        self._sandboxes.tell("volume.removed", name=name)
        return ok()

    async def prune(self, request: web.Request) -> web.Response:
        """The names of those that were removed; what is in use by now stays."""
        wish = await body(request, _Prune)
        removed, folders = [], []
        with headroom.given(self._home):
            for name in wish.names:
                try:
                    folders.append(self._volumes.remove(name))
                except (Conflict, NotFound):
                    continue
                removed.append(name)
        await asyncio.to_thread(discard, folders)
        for name in removed:
            self._sandboxes.tell("volume.removed", name=name)
        return ok(removed)
