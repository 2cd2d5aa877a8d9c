"""The node itself over HTTP: what it is, what happens, what its disk is taken by, its end."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from perdure import __version__
from perdure.execution.sandboxes import diskuse
from perdure.execution.sandboxes.sandboxes import Sandboxes
from perdure.execution.snapshots.care import garbage
from perdure.execution.snapshots.store import Store
from perdure.host import identity
from perdure.host.paths import Home
from perdure.node.answers import NDJSON, number, ok, stream
from perdure.node.following import Handler


class System:
    """Handlers; ``shutdown`` ends the daemon. ``follows``: around those that do (``Following``)."""

    def __init__(
        self,
        home: Home,
        sandboxes: Sandboxes,
        store: Store,
        shutdown: Callable[[], None],
        follows: Callable[[Handler], Handler],
    ) -> None:
        self._home, self._sandboxes, self._store, self._shutdown = home, sandboxes, store, shutdown
        self._follows = follows
        self.outside: dict[str, str] = {}  # where the node listens for other machines, and with which certificate

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/system", self.system),
            web.get("/v1/system/df", self.disk_use),
            web.post("/v1/system/shutdown", self.shutdown),
            web.get("/v1/events", self._follows(self.events)),
        ]

    async def system(self, request: web.Request) -> web.Response:
        facts = {
            "version": __version__,
            "pid": os.getpid(),
            "home": str(self._home.root),
            "id": identity.place(self._home).id,
        }
        if request.query.get("brief") == "1":  # every command line asks first whether somebody is there
            return ok(facts)
        states = Counter(str(sandbox.state) for sandbox in self._sandboxes.all())
        return ok(
            {
                **facts,
                "sandboxes": states,
                "images": len(self._sandboxes.images.list()),
                "emulated": self._sandboxes.ground.emulated,
                **self.outside,
            }
        )

    async def disk_use(self, request: web.Request) -> web.Response:
        everyone = [*self._sandboxes.all(), *self._sandboxes.hidden()]

        def work() -> Any:
            swept = garbage.collect(
                self._store,
                named=self._sandboxes.needs.names,
                templates=self._home.templates,
                templates_in_use=self._sandboxes.needs.templates_in_use,
                dry_run=True,
            )
            snapshots = len(self._store.digests())
            volumes = self._sandboxes.volumes.list()
            return diskuse.measure(self._home, self._sandboxes.images, everyone, snapshots, swept, volumes)

        return ok(await asyncio.to_thread(work))

    async def shutdown(self, request: web.Request) -> web.Response:
        asyncio.get_running_loop().call_soon(self._shutdown)
        return ok()

    async def events(self, request: web.Request) -> web.StreamResponse:
        since, until = number(request, "since"), number(request, "until")
        follow = request.query.get("follow", "1") == "1"
        response = await stream(request, NDJSON)
        async for event in self._sandboxes.events.read(follow=follow, since=since, until=until):
            await response.write(msgspec.json.encode(event) + b"\n")
        return response
