"""The node's HTTP API: routes, and nothing that is not about HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any
from urllib.parse import parse_qs

import msgspec
from aiohttp import web

from perdure.errors import Conflict, InvalidValue
from perdure.execution.sandboxes import archive, reading
from perdure.execution.sandboxes.prestarting import WorkloadTemplates
from perdure.execution.sandboxes.rehearsing import Rehearsal
from perdure.execution.sandboxes.sandbox import Sandbox
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.execution.sandboxes.waking import is_asleep
from perdure.formats import logs
from perdure.host.paths import Home
from perdure.host.progress import Progress
from perdure.model import (
    CallsEndpoint,
    ExecSpec,
    Fork,
    Frozen,
    LogPosition,
    SandboxSpec,
    SandboxState,
    WakeReason,
)
from perdure.node import access, terminals, uploads
from perdure.node.access import Access
from perdure.node.answers import body, long, number, ok, sent, stream
from perdure.node.audit import Audit, AuditApi
from perdure.node.border import PATIENCE_S, Border
from perdure.node.doors import Door, Outside
from perdure.node.following import Following
from perdure.node.imagecare import ImageCare
from perdure.node.images import ImagesApi
from perdure.node.networks import NetworksApi
from perdure.node.registries import Registries
from perdure.node.snapshots import Snapshots
from perdure.node.system import System
from perdure.node.templates import TemplatesApi
from perdure.node.tokens import Tokens, TokensApi
from perdure.node.views import Views
from perdure.node.visit import pieces
from perdure.node.volumes import VolumesApi

_QUIET = (SandboxState.CREATED, SandboxState.EXITED, SandboxState.REMOVING)  # what `ps` shows only with -a


class _Rename(Frozen, frozen=True, kw_only=True):
    name: str


class _Stop(Frozen, frozen=True, kw_only=True):
    timeout_s: float | None = None
    signal: str = ""


class _Kill(Frozen, frozen=True, kw_only=True):
    signal: str = "KILL"


class _Suspend(Frozen, frozen=True, kw_only=True):
    position: LogPosition | None = None


class _Resume(Frozen, frozen=True, kw_only=True):
    snapshot: str | None = None
    calls: CallsEndpoint | None = None
    populate: bool | None = None


class _Fork(Frozen, frozen=True, kw_only=True):
    source: str
    forks: list[Fork] = msgspec.field(default_factory=list)  # none: one, of any name
    populate: bool | None = None


_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Api:
    """Handlers; ``shutdown`` ends the daemon."""

    def __init__(
        self, home: Home, sandboxes: Sandboxes, shutdown: Callable[[], None], *, patience_s: float = PATIENCE_S
    ) -> None:
        self._home = home
        self._tokens, self._audit = Tokens(home.root / "tokens.json"), Audit(home.root / "log")
        self._patience_s = patience_s
        self._border = Border(self._tokens, self._audit, patience_s=patience_s)
        self._sandboxes = sandboxes
        self._shutdown = shutdown
        self._templates = WorkloadTemplates(sandboxes)
        self._following = Following()
        self._follows = self._following.follows

    def application(self) -> web.Application:
        """Within the running loop that serves it."""
        app = web.Application()
        self._border.guard(app)
        one = "/v1/sandboxes/{ref}"
        app.add_routes(
            [
                web.post("/v1/sandboxes", self.create),
                web.get("/v1/sandboxes", self.list),
                web.get(one, self.get),
                web.delete(one, self.remove),
                web.post(one + "/rename", self.rename),
                web.post(one + "/start", self.start),
                web.post(one + "/stop", self.stop),
                web.post(one + "/kill", self.kill),
                web.post(one + "/suspend", self.suspend),
                web.post(one + "/checkpoint", self.checkpoint),
                web.post(one + "/resume", self.resume),
                web.post("/v1/forks", self.fork),
                web.get(one + "/snapshots", self.snapshots),
                web.get(one + "/wait", self._follows(self.wait)),
                web.get(one + "/logs", self._follows(self.logs)),
                web.get(one + "/exec", self._follows(self.exec)),
                web.post(one + "/exec", self._using(self.exec_detached)),
                web.get(one + "/attach", self._follows(self.attach)),
                web.put(one + "/archive", self._using(self.put_archive)),
                web.get(one + "/archive", self._using(self.get_archive)),
                web.get(one + "/stat", self._using(self.stat)),
                *TemplatesApi(self._templates).routes(),
            ]
        )
        every = self._sandboxes
        rehearsal = Rehearsal(self._home, every.ground, every.images, every.store, asyncio.get_running_loop())
        app.add_routes(ImagesApi(self._home, every).routes())
        app.add_routes(Views(every).routes())
        app.add_routes(Snapshots(self._home, every, rehearsal).routes())
        self._system = System(self._home, every, every.store, self._shutdown, self._follows)
        app.add_routes(self._system.routes())
        app.add_routes([*TokensApi(self._tokens).routes(), *AuditApi(self._audit, self._follows).routes()])
        app.add_routes(NetworksApi(every).routes())
        registries = Registries(self._home, every)
        app.add_routes(registries.routes())
        app.add_routes(ImageCare(self._home, every, registries).routes())
        app.add_routes(VolumesApi(self._home, every).routes())
        return app

    def door(self, runner: web.AppRunner, listening: socket.socket, limit: int, outside: Outside | None = None) -> Door:
        """Where clients come in to the application that ``runner`` has set up."""
        assert runner.server is not None
        door = Door(
            listening,
            runner.server,
            tls=outside.tls if outside is not None else None,
            limit=limit,
            patience_s=self._patience_s,
            refused_bytes=self._border.refused_bytes,
        )
        if outside is not None:
            self._system.outside = {"listen": door.address, "fingerprint": outside.fingerprint}
        return door

    def end(self) -> None:
        """The node ends: who only follows something is not waited for."""
        self._following.end()

    def close(self) -> None:
        """Nobody is served any more."""
        self._audit.end()

    def _find(self, request: web.Request) -> Sandbox:
        return self._sandboxes.find(request.match_info["ref"])

    def _using(self, handler: _Handler) -> _Handler:
        """Of what uses a running sandbox: one that sleeps is woken for it, and does not go to sleep meanwhile. Not for
        who may only read: that it runs is no look."""

        async def use(request: web.Request) -> web.StreamResponse:
            sandbox = self._find(request)
            with sandbox.activity.busy():
                if is_asleep(sandbox):
                    if not access.may(Access.USE):
                        raise Conflict(
                            f"sandbox {sandbox.name} sleeps, and is not woken by who may only read",
                            hint=f"All its files can be read as it sleeps: fcrun export {sandbox.name}",
                        )
                    await sandbox.awake(WakeReason.EXEC)
                return await handler(request)

        return use

    # -- sandboxes ----------------------------------------------------------------------------------------------------
    async def create(self, request: web.Request) -> web.StreamResponse:
        spec = await body(request, SandboxSpec)

        async def work(_: Progress) -> Any:
            async with self._sandboxes.with_volumes(spec) as whole:
                return self._sandboxes.create(whole).info()

        return await long(request, work, 201)

    async def list(self, request: web.Request) -> web.Response:
        everything = request.query.get("all", "1") == "1"
        labels = {text.partition("=")[::2] for text in request.query.getall("label", [])}
        shown = (sandbox for sandbox in self._sandboxes.all() if everything or sandbox.state not in _QUIET)
        return ok([sandbox.info() for sandbox in shown if labels <= sandbox.record.spec.labels.items()])

    async def get(self, request: web.Request) -> web.Response:
        return ok(self._find(request).info())

    async def remove(self, request: web.Request) -> web.Response:
        asked = {name: request.query.get(name) == "1" for name in ("force", "volumes")}
        await asyncio.shield(asyncio.ensure_future(self._find(request).remove(**asked)))
        return ok()

    async def rename(self, request: web.Request) -> web.Response:
        wish = await body(request, _Rename)
        return ok(self._sandboxes.rename(request.match_info["ref"], wish.name).info())

    async def start(self, request: web.Request) -> web.StreamResponse:
        sandbox = self._find(request)
        return await long(request, sandbox.start)

    async def stop(self, request: web.Request) -> web.StreamResponse:
        sandbox, wish = self._find(request), await body(request, _Stop)
        return await long(request, lambda _: sandbox.stop(wish.timeout_s, wish.signal))

    async def kill(self, request: web.Request) -> web.StreamResponse:
        sandbox, wish = self._find(request), await body(request, _Kill)
        return await long(request, lambda _: sandbox.kill(wish.signal))

    async def suspend(self, request: web.Request) -> web.StreamResponse:
        sandbox, wish = self._find(request), await body(request, _Suspend)
        return await long(request, lambda _: sandbox.suspend(wish.position))

    async def checkpoint(self, request: web.Request) -> web.StreamResponse:
        sandbox, wish = self._find(request), await body(request, _Suspend)
        return await long(request, lambda _: sandbox.checkpoint(wish.position))

    async def fork(self, request: web.Request) -> web.StreamResponse:
        wish = await body(request, _Fork)

        async def work(progress: Progress) -> Any:
            forks = await self._sandboxes.fork(wish.source, wish.forks or [Fork()], progress, populate=wish.populate)
            return [fork.info() for fork in forks]

        return await long(request, work, 201)

    async def resume(self, request: web.Request) -> web.StreamResponse:
        sandbox, wish = self._find(request), await body(request, _Resume)

        async def work(progress: Progress) -> Any:
            return await sandbox.resume(
                snapshot=wish.snapshot, calls=wish.calls, progress=progress, populate=wish.populate
            )

        return await long(request, work)

    async def snapshots(self, request: web.Request) -> web.Response:
        return ok([kept.info for kept in self._find(request).record.snapshots])

    async def wait(self, request: web.Request) -> web.Response:
        return ok(await self._find(request).wait_exited())

    # -- what runs in them --------------------------------------------------------------------------------------------
    async def logs(self, request: web.Request) -> web.StreamResponse:
        sandbox = self._find(request)
        tail, since, wanted = number(request, "tail"), number(request, "since") or 0.0, number(request, "offset")
        offset, skip = (0, 0) if tail is None else await asyncio.to_thread(sandbox.log.tail, int(tail))
        follow, until = request.query.get("follow") == "1", number(request, "until")
        follow = follow and (until is None or until > time.time())
        ended = (SandboxState.EXITED, SandboxState.REMOVING)
        headers, first, positions = dict[str, str](), b"", request.query.get("positions") == "1"
        if positions or wanted is not None:
            byte = None if wanted is None else int(wanted)
            upto = offset if byte is None else None
            place = await asyncio.to_thread(sandbox.log.place, byte, upto=upto, skip=skip)
            offset, skip, headers["Log-Offset"] = place.at, place.skip, str(place.written)
            if positions:
                at = place.positions
                first = logs.encode_position(at[logs.STDOUT], at[logs.STDERR], time.time_ns())
        response = await stream(request, "application/octet-stream", headers)
        if first:
            await response.write(first)
        ending = contextlib.nullcontext() if until is None or not follow else asyncio.timeout(until - time.time())
        with contextlib.suppress(TimeoutError):
            async with ending:
                records = sandbox.log.read(offset, lambda: follow and sandbox.state not in ended, positions=positions)
                async for record in records:
                    data = record.data
                    if record.stream != logs.POSITION:
                        data, skip = data[skip:], 0
                    if data and record.time >= since and (until is None or record.time <= until):
                        await response.write(logs.encode(record.stream, int(record.time * 1e9), data))
        return response

    async def exec(self, request: web.Request) -> web.StreamResponse:
        return await terminals.exec_session(request, self._find(request))

    async def exec_detached(self, request: web.Request) -> web.Response:
        sandbox = self._find(request)
        process = await sandbox.exec(await body(request, ExecSpec))
        sandbox.discard(process)
        return ok({"id": process.id, "pid": process.pid}, 201)

    async def attach(self, request: web.Request) -> web.StreamResponse:
        asked = {name: request.query.get(name) == "1" for name in ("logs", "waits", "wakes")}
        sandbox = self._find(request)
        return await terminals.attach_session(
            request, sandbox, from_start=asked["logs"], waits=asked["waits"], wakes=asked["wakes"]
        )

    # -- files --------------------------------------------------------------------------------------------------------
    async def put_archive(self, request: web.Request) -> web.Response:
        sandbox, path = self._find(request), _guest_path(request)
        if sandbox.state is SandboxState.CREATED:
            await self._keep_archive(request, sandbox, path)
            return ok()
        if not stat.S_ISDIR((await sandbox.files.stat(path)).mode):
            raise InvalidValue(f"{path} is no folder in sandbox {sandbox.name}")
        kept = uploads.new(self._home)
        try:
            await archive.unpack_arriving(pieces(request), kept, path, sandbox.files)
        finally:
            uploads.forget(kept)
        return ok()

    async def _keep_archive(self, request: web.Request, sandbox: Sandbox, path: str) -> None:
        """For its start."""
        there = await asyncio.to_thread(sandbox.foretold, path, follow=True)
        if not stat.S_ISDIR(there.mode):
            raise InvalidValue(f"{path} is no folder in sandbox {sandbox.name}")
        received = await uploads.received(self._home, request)
        try:
            await asyncio.to_thread(archive.check, received)
            async with sandbox.before_start():
                archive.keep(sandbox.folder.archives, received, path)
        finally:
            uploads.forget(received)

    async def get_archive(self, request: web.Request) -> web.StreamResponse:
        return await sent(request, _packed(self._find(request), _guest_path(request)))

    async def stat(self, request: web.Request) -> web.Response:
        sandbox, follow = self._find(request), request.query.get("follow", "1") == "1"
        if sandbox.state is SandboxState.CREATED:
            there = await asyncio.to_thread(sandbox.foretold, _guest_path(request), follow=follow)
            return ok({"mode": there.mode, "size": 0, "mtime_s": 0.0, "link": there.link})
        async with reading.files_of(sandbox) as files:
            entry = await files.stat(_guest_path(request), follow=follow)
        return ok({"mode": entry.mode, "size": entry.size, "mtime_s": entry.mtime_ns / 1e9, "link": entry.link})


async def _packed(sandbox: Sandbox, path: str) -> AsyncGenerator[bytes, None]:
    async with reading.files_of(sandbox) as files:
        await files.stat(path, follow=False)
        async with aclosing(archive.pack(path, files)) as pieces:
            async for data in pieces:
                yield data


def _guest_path(request: web.Request) -> str:
    # names need not be UTF-8: what is not comes as bytes, and goes on as such
    given = parse_qs(request.rel_url.raw_query_string, errors="surrogateescape")
    path = given.get("path", [""])[0]
    if not path.startswith("/") or "\0" in path:
        raise InvalidValue(f"{path!r} is no absolute path in the sandbox")
    return path
