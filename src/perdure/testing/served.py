"""A house behind its HTTP API, as clients and nodes reach it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import aiohttp
from aiohttp import web

from perdure.client.server import ServerClient
from perdure.host.paths import Home
from perdure.server.api import Api
from perdure.testing.house import House

Result = TypeVar("Result")


class Served:
    """A house behind its HTTP API."""

    def __init__(self, house: House, home: Home) -> None:
        self.house = house
        self.home = home
        self.url = ""
        self.client = ServerClient(home)

    async def up(self) -> None:
        api = Api(
            self.home, self.house.engine, self.house.log, providers=["test"], url="", token="right", started=time.time()
        )
        self.runner = api.runner()
        await self.runner.setup()
        await web.UnixSite(self.runner, str(self.home.socket("perdured")), backlog=512).start()  # as perdured's
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        host, port = self.runner.addresses[1][:2]
        self.url = f"http://{host}:{port}"

    async def ask(self, work: Callable[[ServerClient], Result]) -> Result:
        return await asyncio.wait_for(asyncio.to_thread(work, self.client), 20)

    async def call(
        self, run_id: str, epoch: int, path: str, body: bytes, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """As a node asks: status, headers, body."""
        endpoint = self.house.engine.endpoint(run_id, epoch)
        asked = {
            "Perdure-Run": run_id,
            "Perdure-Epoch": str(epoch),
            "Perdure-Token": endpoint.token,
            "Perdure-Lane": "test",
            "Perdure-Ordinal": "0",
            "Perdure-Method": "POST",
            "Perdure-Path": path,
            "Perdure-Offset": "0",
            "Perdure-Headers": "{}",
            **{"Perdure-" + name.capitalize(): value for name, value in headers.items()},
        }
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.url + "/v1/calls", data=body, headers=asked) as answer,
        ):
            return answer.status, dict(answer.headers), await answer.read()
