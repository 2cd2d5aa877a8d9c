"""Images over HTTP, beyond bringing and taking them: save, history, inspect, prune."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from perdure.errors import Conflict, InvalidValue, NotFound, PerdureError
from perdure.execution.images import building, saving, telling
from perdure.execution.images.image import Image
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.execution.snapshots.diskspace import space_checked
from perdure.host import headroom
from perdure.host.paths import Home
from perdure.host.progress import silent
from perdure.model import DockerfileBuild, Frozen, ImageInfo, Pruned
from perdure.node import visit
from perdure.node.answers import NDJSON, body, known, ok, stream
from perdure.node.registries import Registries

LOOK_S = 1.0  # how often it is looked whether the client of a build is still there


class _Prune(Frozen, frozen=True, kw_only=True):
    every: bool = False  # also those that have a name
    until: float | None = None  # only what came before (seconds since the epoch)
    labels: list[str] = msgspec.field(default_factory=list)  # NAME or NAME=VALUE: only what has them all
    without_labels: list[str] = msgspec.field(default_factory=list)  # only what has none of them


class ImageCare:
    """Handlers."""

    def __init__(self, home: Home, sandboxes: Sandboxes, registries: Registries) -> None:
        self._home, self._sandboxes, self._library = home, sandboxes, sandboxes.images
        self._registries = registries

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/images/save", self.save),
            web.get("/v1/images/history", self.history),
            web.get("/v1/images/inspect", self.inspect),
            web.post("/v1/images/prune", self.prune),
            web.post("/v1/images/dockerfile", self.build),
        ]

    async def save(self, request: web.Request) -> web.StreamResponse:
        names = request.query.getall("name", [])
        if not names:
            raise InvalidValue("which images are to be saved?", hint="name=NAME, once for each")
        wanted = await asyncio.to_thread(saving.chosen, self._library, names)
        response = await stream(request, "application/x-tar")
        pieces = saving.archive(self._library, wanted)
        try:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                await response.write(piece)
        except PerdureError:
            if request.transport is not None:
                request.transport.abort()  # so that nobody takes what came for a whole archive
            raise
        finally:
            await asyncio.to_thread(pieces.close)
        return response

    async def history(self, request: web.Request) -> web.Response:
        return ok(await asyncio.to_thread(telling.steps, self._library, request.query.get("name", "")))

    async def inspect(self, request: web.Request) -> web.Response:
        return ok(await asyncio.to_thread(telling.inspected, self._library, request.query.get("name", "")))

    async def build(self, request: web.Request) -> web.StreamResponse:
        """``wish``: a ``DockerfileBuild``; the body is the context. The build ends when its client leaves."""
        try:
            wish = msgspec.json.decode(request.query.get("wish", "{}"), type=DockerfileBuild)
        except msgspec.MsgspecError as error:
            raise InvalidValue(f"wish: {error}") from error
        folder = Path(tempfile.mkdtemp(dir=self._home.run, prefix="build-"))
        context = folder / "context.tar"
        try:
            with space_checked("the build context"), context.open("wb") as file:
                async for data in visit.pieces(request):
                    file.write(data)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        lines: asyncio.Queue[str | None] = asyncio.Queue()

        async def work() -> list[Image]:
            try:
                return await building.build(self._library, wish, context, folder, lines.put_nowait, self._bring)
            finally:  # before it is told that the build is over
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

        task = asyncio.ensure_future(work())
        task.add_done_callback(lambda _: lines.put_nowait(None))
        try:
            response = await stream(request, NDJSON)
            while (line := await _next(lines, request)) is not None:
                await response.write(msgspec.json.encode({"output": line}) + b"\n")
            try:
                images = task.result()
                for image in images:
                    self._sandboxes.tell("image.added", name=image.name, digest=image.digest)
                last: dict[str, Any] = {"ok": [image_info(image) for image in images]}
            except Exception as error:
                last = {"error": known(error).to_json()}
            await response.write(msgspec.json.encode(last) + b"\n")
            await response.write_eof()
        finally:
            task.cancel()
            await asyncio.wait({task})
        return response

    async def _bring(self, name: str) -> None:
        await self._registries.bring(name, silent)

    async def prune(self, request: web.Request) -> web.Response:
        wish = await body(request, _Prune)
        untagged, deleted = [], []
        freed = 0
        for image in await asyncio.to_thread(self._library.list):
            name = image.name or image.digest
            if not _is_wanted(image, wish) or self._sandboxes.users_of(image.digest):
                continue
            with headroom.given(self._home), contextlib.suppress(NotFound, Conflict):  # somebody else was quicker
                gone = await asyncio.to_thread(self._library.remove, name)
                untagged += [each for each in gone if not each.startswith("sha256:")]
                if image.digest in gone:
                    deleted.append(image.digest)
                    freed += image.size_bytes
                self._sandboxes.tell("image.removed", name=image.name, digest=image.digest)
        return ok(Pruned(untagged=untagged, deleted=deleted, freed_bytes=freed))


def _is_wanted(image: Image, wish: _Prune) -> bool:
    return (
        (wish.every or not image.name)
        and (wish.until is None or image.created < wish.until)
        and all(_has(image, label) for label in wish.labels)
        and not any(_has(image, label) for label in wish.without_labels)
    )


def _has(image: Image, label: str) -> bool:
    name, equals, value = label.partition("=")
    labels = image.config.labels
    return name in labels and (not equals or labels[name] == value)


async def _next(lines: asyncio.Queue[str | None], request: web.Request) -> str | None:
    """Raises ConnectionError when the client has left: a step may say nothing for a long time."""
    while True:
        try:
            return await asyncio.wait_for(lines.get(), LOOK_S)
        except TimeoutError:
            if request.transport is None or request.transport.is_closing():
                raise ConnectionError("the client has left") from None


def image_info(image: Image) -> ImageInfo:
    """As lists and answers show it."""
    return ImageInfo(
        name=image.name,
        digest=image.digest,
        size_bytes=image.size_bytes,
        created=image.created,
        labels=image.config.labels,
        pulled=image.pulled,
        manifest=image.manifest,
    )
