"""A node of small machines for a server that is a process: it cannot tell this one from ``fcrund``.

It speaks the part of the node's API that ``server.machines`` needs, on the same socket, and forwards calls as a node
does. Machines are those of ``perdure.testing.machines``: they outlive the server and forget nothing when it dies.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from perdure.errors import PerdureError, StaleEpoch, Unavailable
from perdure.host.paths import Home
from perdure.model import Answer, Call, CallsEndpoint, LogPosition, NodeEvent, SandboxSpec, SandboxState
from perdure.reports import Pulled, Pushed
from perdure.server.machines import LABEL
from perdure.testing.machines import LocalMachines, Program

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
AGAIN_S = 0.03  # before a server that is not there is asked again


class SmallNode(LocalMachines):
    """``program`` says what runs in a sandbox. Open it before the server, close it after. Calls go to the server that a
    machine was started or resumed by last."""

    def __init__(self, home: Home, program: Callable[[SandboxSpec], Program]) -> None:
        super().__init__(_end)
        self._home = home
        self._program_of = program
        self.acknowledged: list[tuple[str, str, str]] = []  # run, key and path of each call that was answered with 200
        self._happened: list[NodeEvent] = []
        self._more = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._sessions: dict[str, aiohttp.ClientSession] = {}  # by the url of calls
        self._urls: dict[tuple[str, int], str] = {}  # by run and epoch
        self.door = self._ask_server

    async def open(self) -> None:
        path = self._home.socket("fcrund")
        app = web.Application(middlewares=[_errors], client_max_size=1 << 30)
        one = "/v1/sandboxes/{id}"
        app.add_routes(
            [
                web.get("/v1/system", self._system),
                web.get("/v1/events", self._events),
                web.get("/v1/sandboxes", self._list),
                web.post("/v1/sandboxes", self._create),
                web.get(one, self._get_one),
                web.delete(one, self._delete),
                web.put(one + "/archive", _nothing),
                web.get(one + "/logs", _printed),
                web.get(one + "/changes", self._changes_of),
                web.get(one + "/changes/content", self._file_of),
                web.post(one + "/start", self._start_one),
                web.post(one + "/suspend", self._suspend_one),
                web.post(one + "/checkpoint", self._checkpoint_one),
                web.post(one + "/resume", self._resume_one),
                web.delete("/v1/snapshots/{digest}", self._forget_one),
                web.post("/v1/forks", self._fork_all),
                web.post("/v1/snapshots/{digest}/push", self._push_one),
                web.post("/v1/store/pull", self._pull_one),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(path)).start()

    async def close(self) -> None:
        await super().close()
        if self._runner is not None:
            await self._runner.cleanup()
        for session in self._sessions.values():
            await session.close()

    # -- its API

    async def _system(self, request: web.Request) -> web.Response:
        return _json({"version": "0", "pid": 0, "home": str(self._home.root)})

    async def _list(self, request: web.Request) -> web.Response:
        return _json([await self.inspect(sandbox_id) for sandbox_id in list(self.sandboxes)])

    async def _create(self, request: web.Request) -> web.Response:
        spec = msgspec.json.decode(await request.read(), type=SandboxSpec)
        sandbox_id = self.create(msgspec.structs.replace(spec, labels={"run": spec.labels[LABEL], **spec.labels}), _end)
        self.sandboxes[sandbox_id].program = self._program_of(spec)
        return await self._told(sandbox_id)

    async def _start_one(self, request: web.Request) -> web.Response:
        await self._begin("start")
        sandbox = self._get(request.match_info["id"])
        assert sandbox.spec.calls is not None
        self._run(request.match_info["id"], sandbox.spec.calls)
        self.done.append("start")
        return await self._told(request.match_info["id"])

    async def _get_one(self, request: web.Request) -> web.Response:
        return await self._told(request.match_info["id"])

    async def _delete(self, request: web.Request) -> web.Response:
        await self._begin("remove")
        self._get(request.match_info["id"])
        await self._freeze(self.sandboxes.pop(request.match_info["id"]))
        return _json({})

    async def _suspend_one(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        return _json(await self.suspend(request.match_info["id"], msgspec.convert(body["position"], LogPosition)))

    async def _checkpoint_one(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        return _json(await self.checkpoint(request.match_info["id"], msgspec.convert(body["position"], LogPosition)))

    async def _forget_one(self, request: web.Request) -> web.Response:
        digest = request.match_info["digest"]
        of = next((name for name, sandbox in self.sandboxes.items() if digest in sandbox.captures), "none")
        await self.forget(of, digest)
        return _json({"freed_bytes": 0})

    async def _fork_all(self, request: web.Request) -> web.Response:
        body, made = json.loads(await request.read()), []
        for wanted in body["forks"]:
            run, calls = wanted["labels"][LABEL], msgspec.convert(wanted["calls"], CallsEndpoint)
            of = next((s.spec for s in self.sandboxes.values() if body["source"] in s.captures), SandboxSpec(image=""))
            sandbox_id = await self.fork(run, body["source"], calls)
            sandbox = self.sandboxes[sandbox_id]
            sandbox.spec = msgspec.structs.replace(of, labels={"run": run, LABEL: run}, calls=calls)
            made.append(await self.inspect(sandbox_id))
        return _json(made)

    async def _push_one(self, request: web.Request) -> web.Response:
        url, digest = json.loads(await request.read())["url"], request.match_info["digest"]
        await self.push(digest, url)
        return _json(Pushed(digest, url, "", 0, 0))

    async def _pull_one(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        await self.pull(body["reference"], body["url"])
        return _json(Pulled(body["reference"], body["url"], body["reference"], "", 0))

    async def _resume_one(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        calls = msgspec.convert(body["calls"], CallsEndpoint)
        await self.resume(request.match_info["id"], body["snapshot"], calls)
        return await self._told(request.match_info["id"])

    async def _told(self, sandbox_id: str) -> web.Response:
        return _json(await self.inspect(sandbox_id))

    async def _changes_of(self, request: web.Request) -> web.Response:
        return _json(await self.changes(request.match_info["id"]))

    async def _file_of(self, request: web.Request) -> web.Response:
        return web.Response(body=await self.file(request.match_info["id"], request.query["path"]))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        since, told = float(request.query.get("since", "0")), 0
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            for event in self._happened[told:]:
                if event.time >= since:
                    try:
                        await response.write(msgspec.json.encode(event) + b"\n")
                    except ConnectionError:
                        return response  # its server has died
            told = len(self._happened)
            self._more.clear()
            if told == len(self._happened):
                await self._more.wait()

    def _tell(self, kind: str, sandbox_id: str) -> None:
        self._happened.append(NodeEvent(time=time.time(), kind=kind, sandbox_id=sandbox_id))
        more, self._more = self._more, asyncio.Event()
        more.set()

    # -- calls

    def _run(self, sandbox_id: str, calls: CallsEndpoint) -> None:
        self._urls[calls.run_id, calls.epoch] = calls.url
        super()._run(sandbox_id, calls)

    def _session(self, url: str) -> aiohttp.ClientSession:
        """url: unix:/PATH.sock:/v1/calls."""
        if url not in self._sessions:
            connector = aiohttp.UnixConnector(url.removeprefix("unix:").rpartition(":")[0], limit=0)
            timeout = aiohttp.ClientTimeout(total=None)
            self._sessions[url] = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._sessions[url]

    async def _ask_server(self, call: Call, token: str) -> Answer:
        headers = {
            "Perdure-Run": call.run_id,
            "Perdure-Epoch": str(call.epoch),
            "Perdure-Token": token,
            "Perdure-Lane": call.lane,
            "Perdure-Ordinal": str(call.ordinal),
            "Perdure-Method": call.method,
            "Perdure-Path": call.path,
            "Perdure-Offset": str(call.offset),
            "Perdure-Headers": "{}",
        }
        try:
            session = self._session(self._urls[call.run_id, call.epoch])
            answer = await session.post("http://localhost/v1/calls", data=call.body, headers=headers)
            if answer.status == 410:
                raise StaleEpoch((await answer.text())[:200])
        except (aiohttp.ClientError, OSError) as error:
            await asyncio.sleep(AGAIN_S)
            raise Unavailable(repr(error)) from error
        if answer.status == 503 and answer.headers.get("Perdure-Retry"):
            answer.release()
            await asyncio.sleep(AGAIN_S)
            raise Unavailable("the server asks to be asked again")
        return Answer(answer.status, dict(answer.headers), self._body(call, answer))

    async def _body(self, call: Call, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for piece in answer.content.iter_any():
                yield piece
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(repr(error)) from error
        finally:
            answer.release()
        if answer.status == 200:
            self.acknowledged.append((call.run_id, call.key, call.path))

    def running(self) -> list[str]:
        """Sandboxes whose machine runs."""
        return [name for name, sandbox in self.sandboxes.items() if sandbox.state is SandboxState.RUNNING]


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


async def _nothing(request: web.Request) -> web.Response:
    await request.read()
    return web.Response()


async def _printed(request: web.Request) -> web.Response:
    return web.Response(headers={"Log-Offset": "0"})


def _end() -> Any:
    yield from ()


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except PerdureError as error:
        return web.json_response({"error": error.to_json()}, status=error.http_status)
