"""A connection that is given up while it is made: the database has no session of it that nobody knows."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from perdure.context.postgres.connections import Address
from perdure.errors import Unavailable


@pytest.mark.parametrize("why", ["cancelled", "too slow"])
async def test_a_connection_that_is_given_up_is_closed_while_somebody_has_the_error(tmp_path: Path, why: str) -> None:
    asked, over = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        asked.set()  # and never answered
        await reader.read()
        over.set()
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / ".s.PGSQL.5432"):
        address = Address(f"postgresql:///a?host={tmp_path}&user=a&connect_timeout=2", "perdure")
        connecting = asyncio.create_task(address.connect())
        await asyncio.wait_for(asked.wait(), 20)
        if why == "cancelled":
            connecting.cancel()
        [error] = await asyncio.gather(connecting, return_exceptions=True)
        assert isinstance(error, asyncio.CancelledError if why == "cancelled" else Unavailable)
        await asyncio.wait_for(over.wait(), 20)
        assert connecting.done()  # it has the error, too
