"""The context log on PostgreSQL: its schema, a writer with group commit, readers, and an ear for other servers."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from perdure.context import queries
from perdure.context.changes import Job
from perdure.context.faults import Faults
from perdure.context.postgres import schema
from perdure.context.postgres.connections import PATIENCE_S, Address, Connection, Readers
from perdure.context.postgres.leases import PostgresLeases
from perdure.context.postgres.notices import Notices
from perdure.context.postgres.writer import Writer
from perdure.context.rows import blob_of
from perdure.errors import LeaseLost, PerdureError, ProtocolError, Unsupported

POLL_S = 0.5  # so late a follower hears of what another server wrote, when its notification was lost
LISTEN_AGAIN_S = 1.0
OLDEST_SERVER = 130000  # gen_random_uuid, pg_current_xact_id

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class PostgresDatabase:
    """See ``context.stored.Database``."""

    by_key = queries.BY_KEY

    def __init__(self, address: Address, connection: Connection, faults: Faults | None) -> None:
        self.name = address.name
        self._address = address
        self._server = secrets.token_hex(8)
        self._channel = f"perdure_{address.schema}"
        self._readers = Readers(address)
        self._notices = Notices(self._readers, self._channel, self._server)
        self._writer = Writer(address, connection, self._notices.tell, faults)
        self.leases = PostgresLeases(address, self._writer, faults)
        self._listening: asyncio.Task[None] | None = None

    @staticmethod
    async def open(url: str, schema_name: str, faults: Faults | None) -> PostgresDatabase:
        address = Address(url, schema_name)
        connection = await address.connect(patience_s=PATIENCE_S)
        try:
            await _prepare(connection, address)
        except BaseException as error:
            await connection.close()
            if isinstance(error, psycopg.Error):
                raise address.explain(error) from error
            raise
        return PostgresDatabase(address, connection, faults)

    async def close(self) -> None:
        await self._writer.close()
        await self._notices.close()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        await self._readers.close()
        await self.leases.close()

    async def submit(self, job: Job[Result]) -> Result:
        result = await self._writer.submit(job)
        if not self.leases.is_sure:  # it is done; but whoever asked may have been stopped since, and is to do nothing
            raise LeaseLost("this server was stopped, or cut off: its lease may be gone", hint="Ask again in a moment.")
        return result

    async def rows(self, query: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        return await self._readers.rows(_adapted(query), values)

    async def blobs(self, keys: Collection[bytes], *, deep: bool) -> dict[bytes, bytes]:
        rows = await self._readers.rows(schema.BLOBS_DEEP if deep else schema.BLOBS, {"keys": list(keys)})

        def check() -> dict[bytes, bytes]:
            return {key: blob_of(key, *row) for key, *row in rows}

        return check() if len(rows) < 16 else await asyncio.to_thread(check)

    # -- what other servers write

    def watch(self, run_ids: Callable[[], Iterable[str]], wake: Callable[[str | None], None]) -> None:
        self._listening = asyncio.create_task(self._listen(run_ids, wake), name="context-log-listener")

    async def _listen(self, run_ids: Callable[[], Iterable[str]], wake: Callable[[str | None], None]) -> None:
        told = ""
        while True:
            try:
                async with await self._address.connect() as connection:
                    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
                    told = ""
                    await self._hear(connection, run_ids, wake)
            except (psycopg.Error, PerdureError) as error:
                if not told:  # once: it may be away for long
                    told = str(self._address.explain(error).message)
                    log.warning("no news of other servers: %s", told)
            await asyncio.sleep(LISTEN_AGAIN_S)

    async def _hear(
        self, connection: Connection, run_ids: Callable[[], Iterable[str]], wake: Callable[[str | None], None]
    ) -> None:
        """Notifications as they come; and, as they are only hints, a look now and then."""
        seen: dict[str, tuple[int, int]] = {}
        while True:
            followed = list(run_ids())
            if followed:
                cursor = await connection.execute(schema.MOVED, {"runs": followed}, binary=True)
                found = {run_id: (branch, seq) for run_id, branch, seq in await cursor.fetchall()}
                for run_id, at in found.items():
                    if seen.get(run_id) != at:
                        wake(run_id)
                seen = found
            async for notice in connection.notifies(timeout=POLL_S):
                server, *written = notice.payload.split()
                if server != self._server:
                    for run_id in written:
                        wake(None if run_id == "*" else run_id)


@cache
def _adapted(query: str) -> str:
    return schema.adapted(query)


async def _prepare(connection: Connection, address: Address) -> None:
    """Make the schema, or bring it forward; all or nothing, and one server at a time."""
    if connection.info.server_version < OLDEST_SERVER:
        found = connection.info.parameter_status("server_version")
        raise Unsupported(f"{address.name} is PostgreSQL {found}", hint="Version 13 or a newer one is needed.")
    if await _setting(connection, "fsync") == "off":
        log.warning("%s has fsync off: what it acknowledges does not survive a loss of power", address.name)
    name = sql.Identifier(address.schema)
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"perdure {address.schema}",))
        version = await _version(connection, address)
        if version == 0:
            await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name))
        elif version > schema.VERSION:
            hint = "Install the newer perdure again; older ones do not read it."
            message = f"the context log {address.name} has version {version}, this is {schema.VERSION}"
            raise ProtocolError(message, hint=hint)
        await connection.execute("SET LOCAL statement_timeout = 0")  # of a long log: cut short, it is never done
        for new in range(max(version, schema.FIRST_VERSION - 1) + 1, schema.VERSION + 1):
            await connection.execute(schema.MIGRATIONS[new].encode())
            await connection.execute("UPDATE meta SET version = %s", (new,))
        await connection.execute("UPDATE meta SET version = version")  # fails now, not at the first entry


async def _version(connection: Connection, address: Address) -> int:
    """0: there is no log."""
    query = "SELECT to_regclass(%s) IS NOT NULL"
    cursor = await connection.execute(query, (f"{address.schema}.meta",))
    if not (await cursor.fetchone() or [False])[0]:
        return 0
    row = await (await connection.execute("SELECT version FROM meta")).fetchone()
    return int(row[0]) if row else 0


async def _setting(connection: Connection, name: str) -> str:
    row = await (await connection.execute("SELECT current_setting(%s)", (name,))).fetchone()
    return str(row[0]) if row else ""
