"""Images over HTTP: how they come to a node, are listed, named and removed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from perdure.errors import Conflict
from perdure.execution.images.image import Image
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.host import headroom
from perdure.host.paths import Home
from perdure.host.progress import Progress
from perdure.model import Frozen
from perdure.node import uploads
from perdure.node.answers import body, long, ok
from perdure.node.imagecare import image_info

_Images = list[Image]  # ImagesApi.list hides the builtin inside the class
_Routes = list[web.RouteDef]


class _Tag(Frozen, frozen=True, kw_only=True):
    source: str  # a name, or a digest or the beginning of it
    name: str


class _Build(Frozen, frozen=True, kw_only=True):
    name: str
    packages: list[str]
    suite: str | None = None


class ImagesApi:
    """Handlers."""

    def __init__(self, home: Home, sandboxes: Sandboxes) -> None:
        self._home, self._sandboxes, self._library = home, sandboxes, sandboxes.images

    def routes(self) -> _Routes:
        return [
            web.get("/v1/images", self.list),
            web.delete("/v1/images", self.remove),
            web.post("/v1/images/tag", self.tag),
            web.post("/v1/images/import", self.import_tar),
            web.post("/v1/images/load", self.load),
            web.post("/v1/images/build", self.build),
        ]

    async def list(self, request: web.Request) -> web.Response:
        return ok([image_info(image) for image in await asyncio.to_thread(self._library.list)])

    async def remove(self, request: web.Request) -> web.Response:
        image = self._library.get(request.query.get("name", ""))
        if users := self._sandboxes.users_of(image.digest):
            raise Conflict(
                f"image {image.name} is in use by {', '.join(sandbox.record.name for sandbox in users)}",
                hint="Remove these sandboxes first: fcrun rm",
            )
        with headroom.given(self._home):
            removed = await asyncio.to_thread(self._library.remove, request.query["name"])
        self._sandboxes.tell("image.removed", name=image.name)
        return ok(removed)

    async def tag(self, request: web.Request) -> web.Response:
        wish = await body(request, _Tag)
        image = await asyncio.to_thread(self._library.tag, wish.source, wish.name)
        self._sandboxes.tell("image.tagged", name=image.name, digest=image.digest)
        return ok(image_info(image), 201)

    async def import_tar(self, request: web.Request) -> web.StreamResponse:
        name, changes = request.query.get("name", ""), request.query.getall("change", [])

        def work(tar: Path, progress: Progress) -> Image:
            return self._library.import_tar(tar, name, changes=changes, progress=progress)

        return await self._add(request, lambda tar, progress: [work(tar, progress)], one=True)

    async def load(self, request: web.Request) -> web.StreamResponse:
        def work(tar: Path, progress: Progress) -> _Images:
            return self._library.load_archive(tar, progress=progress)

        return await self._add(request, work, one=False)

    async def _add(
        self, request: web.Request, add: Callable[[Path, Progress], _Images], *, one: bool
    ) -> web.StreamResponse:
        received = await uploads.received(self._home, request)

        async def work(progress: Progress) -> Any:
            try:
                images = await asyncio.to_thread(add, received, progress)
            finally:
                uploads.forget(received)
            for image in images:
                self._sandboxes.tell("image.added", name=image.name, digest=image.digest)
            answer = [image_info(image) for image in images]
            return answer[0] if one else answer

        return await long(request, work, 201)

    async def build(self, request: web.Request) -> web.StreamResponse:
        wish = await body(request, _Build)

        async def work(progress: Progress) -> Any:
            image = await asyncio.to_thread(
                lambda: self._library.build_from_packages(wish.name, wish.packages, suite=wish.suite, progress=progress)
            )
            self._sandboxes.tell("image.added", name=image.name, digest=image.digest)
            return image_info(image)

        return await long(request, work, 201)
