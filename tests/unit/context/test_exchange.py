"""What comes of an answer that is none of the protocol: the connection is lost, and nothing else waits for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from perdure.context.postgres.exchange import Exchange

LET_IN = b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I"  # AuthenticationOk, ReadyForQuery


@pytest.mark.timeout(60)  # a loop that stands still hears of no other limit
@pytest.mark.parametrize("said", [b"HTTP/1.1 502 Bad Gateway\r\n\r\n", b"Z\x7f\xff\xff\xff\xff"])
async def test_an_answer_that_is_none_of_the_protocol(tmp_path: Path, said: bytes) -> None:
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big") - 4)
        writer.write(LET_IN)
        await reader.readexactly(1)
        writer.write(said)
        await over.wait()
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / ".s.PGSQL.5432"):
        connection = await psycopg.AsyncConnection.connect(f"host={tmp_path} user=a dbname=a", autocommit=True)
        try:
            with pytest.raises(psycopg.OperationalError):
                await asyncio.wait_for(Exchange(connection).ask([("COMMIT", [])]), 20)
            assert connection.closed
        finally:
            over.set()
            await connection.close()
