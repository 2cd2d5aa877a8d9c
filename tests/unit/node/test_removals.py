"""A snapshot whose removal is refused stays as it was: kept, where a pull keeps it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from perdure.execution.snapshots import transfer
from perdure.execution.snapshots.store import Store
from perdure.host.paths import Home
from perdure.node import daemon
from perdure.testing.places import Place

DEADLINE_S = 60.0


async def test_a_pulled_one_that_is_being_read_stays_and_its_tag_with_it(tmp_path: Path) -> None:
    """The tag may be that of another pull, which has said that it keeps it."""
    place = Place(tmp_path / "place")
    place.push()
    digest, url = place.snapshot.digest, place.remote.url
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    ready = asyncio.Event()
    node = asyncio.create_task(daemon.serve(home, ready))
    await asyncio.wait_for(ready.wait(), DEADLINE_S)
    store = Store(home.store)
    connector = aiohttp.UnixConnector(str(home.socket("fcrund")))
    async with aiohttp.ClientSession("http://node/v1/", connector=connector) as client:
        async with client.post("store/pull", json={"url": url, "reference": digest}) as answer:
            assert digest in await answer.text()
        with store.reading(digest):
            async with client.delete(f"snapshots/{digest}") as answer:
                assert (answer.status, "is being read" in await answer.text()) == (409, True)
        assert store.tags() == {transfer.kept_tag(digest): digest}
        async with client.post("store/collect", json={}) as answer:
            assert answer.status == 200 and await answer.read()
        assert store.digests() == [digest]
        async with client.delete(f"snapshots/{digest}") as answer:
            assert answer.status == 200
        assert (store.digests(), store.tags()) == ([], {})
        async with client.post("system/shutdown") as answer:
            assert answer.status == 200
        await asyncio.wait_for(node, DEADLINE_S)
