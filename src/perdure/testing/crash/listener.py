"""Somebody outside whom hooks tell of runs: it writes down what it was told."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from aiohttp import web

STATES = ("running", "waiting", "suspended", "recovering", "completed", "failed", "cancelled")
NAME = "outside"  # of the hook in the settings
SLOW_S = 0.2  # until it says that it was told that a run runs: meanwhile that goes on, and may end


@dataclass(frozen=True)
class Delivery:
    time: float
    hook: str  # NAME, or the number of one that the run brought along
    id: str  # RUN:BRANCH:SEQ
    run: str
    state: str


@dataclass
class Listener:
    """On a loopback port: ``url``. ``told``: each delivery, as it came."""

    told: list[Delivery] = field(default_factory=list)
    url: str = ""
    _runner: web.AppRunner | None = None

    async def open(self) -> None:
        app = web.Application()
        app.router.add_post("/", self._listen)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/"

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _listen(self, request: web.Request) -> web.Response:
        said = await request.json()
        self.told.append(Delivery(time.time(), said["hook"], said["id"], said["run_id"], said["state"]))
        if said["state"] == "running":
            await asyncio.sleep(SLOW_S)
        return web.Response()
