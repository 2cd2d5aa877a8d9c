"""A node that is told to end does so at once, whoever follows what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from perdure.host.paths import Home
from perdure.node import daemon
from perdure.testing.tinynodes import box_asleep

DEADLINE_S = 60.0
FOLLOWED = ["events", "system/audit?follow=1", "sandboxes/box/logs?follow=1", "sandboxes/box/wait"]


@asynccontextmanager
async def client_of(home: Home) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(str(home.socket("fcrund")))
    async with aiohttp.ClientSession("http://node/v1/", connector=connector) as session:
        yield session


async def test_nobody_who_follows_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not who has left, which nothing tells the node."""
    monkeypatch.setattr(daemon, "GRACE_S", 2 * DEADLINE_S)
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    box_asleep(home)
    ready = asyncio.Event()
    node = asyncio.create_task(daemon.serve(home, ready))
    await asyncio.wait_for(ready.wait(), DEADLINE_S)
    async with client_of(home) as here:
        async with client_of(home) as gone, gone.get("events") as answer:
            assert answer.status == 200
        async with AsyncExitStack() as open_:
            asked = [asyncio.create_task(open_.enter_async_context(here.get(path))) for path in FOLLOWED]
            for task in asked[:-1]:  # the last one's answer is the end of the box
                assert (await task).status == 200
            session = await open_.enter_async_context(here.ws_connect("sandboxes/box/attach"))
            async with here.post("system/shutdown") as told:
                assert told.status == 200
            await asyncio.wait_for(node, DEADLINE_S)
            assert (await session.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
            with pytest.raises(aiohttp.ClientError):
                await asked[-1]
