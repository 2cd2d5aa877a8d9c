"""The leases of servers on PostgreSQL: a table, and connections of their own, which no write holds up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from perdure.context.faults import Faults
from perdure.context.leases import Lease, Owner
from perdure.context.log import canonical
from perdure.context.postgres.connections import Address, Readers
from perdure.context.postgres.writer import Writer
from perdure.context.rows import no_run
from perdure.errors import Unavailable

PATIENCE_S = 5.0  # of one question: a database that hangs is one that is away

BEGIN = """
INSERT INTO servers (server, facts) VALUES (%(server)s, %(facts)s)
ON CONFLICT (server) DO UPDATE SET facts = EXCLUDED.facts -- asked again: the answer was lost
RETURNING server, lease, beat, facts, 0
"""
BEAT = "UPDATE servers SET beat = beat + 1 WHERE server = %(server)s RETURNING beat"
TIME = "SELECT extract(epoch FROM clock_timestamp())::float8"
LEASES = """
SELECT s.server, s.lease, s.beat, s.facts, (SELECT count(*) FROM runs r WHERE r.server = s.server)
FROM servers s ORDER BY s.lease
"""

# A transaction of that server holds its lease until it ends (writer.LEASE), and this waits for it.
REMOVE = """
DELETE FROM servers WHERE server = %(server)s AND beat = COALESCE(%(beat)s::bigint, beat) RETURNING server
"""

# The distinct servers of runs, from one to the next in the index, without those that have a lease.
GONE = """
WITH RECURSIVE owners (server) AS (
    SELECT min(server) FROM runs WHERE server > ''
    UNION ALL
    SELECT (SELECT min(r.server) FROM runs r WHERE r.server > owners.server) FROM owners WHERE owners.server IS NOT NULL
)
SELECT server FROM owners WHERE server IS NOT NULL AND server NOT IN (SELECT server FROM servers)
"""
ORPHANS = "SELECT server, run_id FROM runs WHERE server = ANY(%(gone)s) ORDER BY created, run_id"

TAKE = """
UPDATE runs SET server = %(me)s
WHERE run_id = %(run_id)s AND server IN (%(server)s, %(me)s)
    AND NOT EXISTS (SELECT 1 FROM servers WHERE server = %(server)s)
    AND EXISTS (SELECT 1 FROM servers WHERE server = %(me)s)
RETURNING run_id
"""
OWNER = """
SELECT r.server, s.server, s.lease, s.beat, s.facts, 0
FROM runs r LEFT JOIN servers s ON s.server = r.server WHERE r.run_id = %(run_id)s
"""

POINTS = {BEGIN: "lease.begin", BEAT: "lease.beat", REMOVE: "lease.remove", TAKE: "lease.take"}  # context.faults


class PostgresLeases:
    """See ``context.leases.Leases``."""

    def __init__(self, address: Address, writer: Writer, faults: Faults | None = None) -> None:
        self._asked = Readers(address)
        self._writer = writer
        self._lasts_s = 0.0
        self._sure_until = 0.0  # monotonic
        self._faults = faults

    @property
    def server(self) -> str:
        return self._writer.lease

    @property
    def is_sure(self) -> bool:
        return not self.server or time.monotonic() < self._sure_until

    async def time(self) -> float:
        [(now,)] = await self._ask(TIME)
        return float(now)

    async def begin(self, server: str, facts: Mapping[str, Any], *, lasts_s: float) -> Lease:
        began = time.monotonic()
        [row] = await self._ask(BEGIN, server=server, facts=canonical(dict(facts)))
        self._lasts_s, self._sure_until = lasts_s, began + lasts_s
        self._writer.lease = server
        return _lease(row)

    async def beat(self) -> bool:
        began = time.monotonic()
        lives = bool(await self._ask(BEAT, server=self.server))
        if lives:
            self._sure_until = began + self._lasts_s
        return lives

    async def end(self) -> None:
        if self.server:
            await self._ask(REMOVE, server=self.server, beat=None)

    async def leases(self) -> list[Lease]:
        return [_lease(row) for row in await self._ask(LEASES)]

    async def remove(self, server: str, beat: int | None) -> bool:
        return bool(await self._ask(REMOVE, server=server, beat=beat))

    async def orphans(self) -> dict[str, list[str]]:
        gone = [server for (server,) in await self._ask(GONE)]
        found: dict[str, list[str]] = {}
        for server, run_id in await self._ask(ORPHANS, gone=gone) if gone else ():
            found.setdefault(server, []).append(run_id)
        return found

    async def take(self, run_id: str, server: str) -> bool:
        return bool(await self._ask(TAKE, run_id=run_id, server=server, me=self.server))

    async def owner(self, run_id: str) -> Owner:
        rows = await self._ask(OWNER, run_id=run_id)
        if not rows:
            raise no_run(run_id)
        server, *lease = rows[0]
        return Owner(server=server, lease=_lease(tuple(lease)) if lease[0] else None)

    async def close(self) -> None:
        await self._asked.close()

    async def _ask(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        points = [POINTS[query]] if self._faults and query in POINTS else []
        if self._faults and points:
            self._faults.reach("before", points)
        try:
            async with asyncio.timeout(PATIENCE_S):
                rows = await self._asked.rows(query, values)
        except TimeoutError as error:
            raise Unavailable(f"the database does not answer within {PATIENCE_S:g} s") from error
        if self._faults and points:
            self._faults.reach("after", points)
        return rows


def _lease(row: tuple[Any, ...]) -> Lease:
    server, number, beat, facts, runs = row
    return Lease(server=server, lease=number, beat=beat, facts=msgspec.json.decode(facts), runs=runs)
