"""What is asked of a run's owner: real servers, and leases that say whose the run is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from perdure.context.leases import Lease, Owner
from perdure.errors import Unavailable
from perdure.server.elsewhere import Elsewhere
from perdure.server.failures import failure
from perdure.server.sharing import PROTOCOL

FOLLOWERS = 120
TIMEOUT_S = 20.0


class Leases:
    """Every run is the other server's."""

    server = "here"

    def __init__(self, url: str) -> None:
        self.facts: dict[str, Any] = {"url": url, "token": "t", "protocol": PROTOCOL, "version": "1"}

    async def leases(self) -> list[Lease]:
        return [Lease(server="there", lease=1, beat=1, facts=self.facts)]

    async def owner(self, run_id: str) -> Owner:
        return Owner(server="there", lease=(await self.leases())[0])


class Two:
    """``ask`` asks one server about a run of the other, whose answers ``there`` gives."""

    def __init__(self) -> None:
        self.there: dict[str, Any] = {}
        self.following = 0
        self.over = asyncio.Event()
        self._runners: list[web.AppRunner] = []
        self.session: ClientSession

    async def open(self) -> None:
        there = web.Application()
        there.router.add_route("*", "/v1/runs/{ref}/{part}", self._there)
        self.leases = Leases(await self._serve(there))
        leases: Any = self.leases
        self._elsewhere = Elsewhere(leases, lambda run_id: False)
        here = web.Application()
        here.router.add_route("*", "/v1/runs/{ref}/{part}", self._here)
        self.url = await self._serve(here)
        self.session = ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=TIMEOUT_S))

    async def close(self) -> None:
        self.over.set()
        await self.session.close()
        await self._elsewhere.close()
        for runner in self._runners:
            await runner.cleanup()

    async def _serve(self, app: web.Application) -> str:
        runner = web.AppRunner(app, shutdown_timeout=1.0)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def _there(self, request: web.Request) -> web.StreamResponse:
        if (error := self.there.get(request.match_info["part"])) is not None:
            return failure(error)
        response = web.StreamResponse()
        await response.prepare(request)
        if request.query.get("follow") == "1":
            await response.write(b"begun")
            self.following += 1
            await self.over.wait()
        await response.write(b"there")
        return response

    async def _here(self, request: web.Request) -> web.StreamResponse:
        async def handler(request: web.Request) -> web.StreamResponse:
            return web.Response(text="here")

        try:
            if not self._elsewhere.is_for_owner(request):
                return await handler(request)
            return await self._elsewhere.answer(request.match_info["ref"], request, handler)
        except Unavailable as error:
            return failure(error)


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    made = Two()
    await made.open()
    yield made
    await made.close()


async def test_whoever_follows_what_a_run_elsewhere_prints_is_told_what_went_wrong(two: Two) -> None:
    two.there["output"] = Unavailable("the node does not answer", hint="Start it.")
    async with two.session.get(f"{two.url}/v1/runs/r/output?follow=1") as answer:
        assert answer.status == 503
        told = (await answer.json())["error"]
    assert (told["message"], told["hint"]) == ("the node does not answer", "Start it.")


async def test_many_who_follow_hold_up_nobody_who_asks_for_something_else(two: Two) -> None:
    url = f"{two.url}/v1/runs/r/output?follow=1"
    following = [await two.session.get(url) for _ in range(FOLLOWERS)]
    for answer in following:
        assert await answer.content.readany() == b"begun"
    assert two.following == FOLLOWERS
    async with two.session.post(f"{two.url}/v1/runs/r/cancel") as answer:
        assert await answer.read() == b"there"
    for answer in following:
        answer.close()


async def test_a_file_of_a_run_is_at_its_owner(two: Two) -> None:
    async with two.session.get(f"{two.url}/v1/runs/r/file?path=/a") as answer:
        assert await answer.read() == b"there"
    async with two.session.get(f"{two.url}/v1/runs/r/tree") as answer:
        assert await answer.read() == b"here"


@pytest.mark.parametrize("part", ["output?follow=1", "file?path=/a"])
async def test_a_server_that_speaks_otherwise_is_not_asked(two: Two, part: str) -> None:
    two.leases.facts["protocol"] = PROTOCOL - 1
    async with two.session.get(f"{two.url}/v1/runs/r/{part}") as answer:
        assert "speaks another protocol" in (await answer.json())["error"]["message"]
