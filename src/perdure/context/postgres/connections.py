"""Connections to PostgreSQL: how they are made, and what its errors mean."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from perdure.errors import InvalidValue, NoRights, NoSpace, PerdureError, ProtocolError, Unavailable

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

CONNECT_S = 5  # of one attempt
PATIENCE_S = 3.0  # so long a database that refuses connections (it is being started) is tried again
RETRY_S = 0.1
STATEMENT_S = 60  # a statement that takes longer is given up, there and here
LOCK_S = 20
IDLE_S = 5  # a server that is stopped in the middle of a transaction holds its locks no longer
READERS = 4

# A connection that is broken, or cannot be made; the statement may be sent again when it is.
LOST = (psycopg.OperationalError, psycopg.InterfaceError)


class Address:
    """Where a log is, and how messages name it (without its password)."""

    def __init__(self, url: str, schema: str) -> None:
        try:
            parts = conninfo_to_dict(url)
        except psycopg.ProgrammingError as error:
            raise InvalidValue(
                f"this names no PostgreSQL database: {str(error).strip()}",
                hint="postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
            ) from error
        host, port, database = (str(parts.get(part) or "") for part in ("host", "port", "dbname"))
        self.schema = schema
        self.name = f"postgresql://{'' if host.startswith('/') else host}{port and ':' + port}/{database}"
        options = f"-c search_path={schema} -c statement_timeout={STATEMENT_S}s -c lock_timeout={LOCK_S}s"
        options += f" -c idle_in_transaction_session_timeout={IDLE_S}s"
        facts: dict[str, Any] = {
            "connect_timeout": CONNECT_S,
            "application_name": "perdure",
            "client_encoding": "UTF8",  # whatever the database's is
            # A network that swallows everything is noticed.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": STATEMENT_S * 1000,
        }
        facts |= {name: value for name, value in parts.items() if name in facts}
        self._conninfo = make_conninfo(url, **facts, options=f"{parts.get('options') or ''} {options}".strip())

    async def connect(self, *, patience_s: float = 0.0) -> Connection:
        """A connection in autocommit mode: transactions are written out."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return await self._attempt()
            except psycopg.OperationalError as error:
                told = self.explain(error)
                if not isinstance(told, Unavailable) or time.monotonic() >= deadline:
                    raise told from error
            await asyncio.sleep(RETRY_S)

    async def _attempt(self) -> Connection:
        try:
            return await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
        except BaseException as error:
            # What was begun is known to the frames of psycopg alone, and whoever holds the error holds them, as a task
            # that was cancelled does. The database would finish it, and have a session that nobody ends.
            traceback.clear_frames(error.__traceback__)
            raise

    def explain(self, error: BaseException) -> PerdureError:
        """What PostgreSQL or its client said, in our words."""
        # What libpq indents are its guesses at why.
        said = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
        where = f"the database {self.name}"
        what = said[-1] if said else repr(error)
        if isinstance(error, PerdureError):
            return error
        if isinstance(error, errors.DiskFull | errors.OutOfMemory):
            return NoSpace(f"{where} is full: {what}", hint="Free some space on its host; nothing was lost.")
        if isinstance(error, errors.ReadOnlySqlTransaction):
            hint = "It is a standby, or was made read-only: name the one that is written to."
            return NoRights(f"{where} cannot be written: {what}", hint=hint)
        if isinstance(error, errors.InsufficientPrivilege):
            hint = (
                "Give this user the right to create a schema in it (GRANT CREATE ON DATABASE …), or make it the owner."
            )
            return NoRights(f"{where} refuses: {what}", hint=hint)
        slow = errors.QueryCanceled | errors.LockNotAvailable | errors.IdleInTransactionSessionTimeout | TimeoutError
        if isinstance(error, slow):
            hint = "It is overloaded, or another program holds a lock (pg_stat_activity says which)."
            return Unavailable(f"{where} is too slow: {what}", hint=hint)
        if isinstance(error, errors.RaiseException | errors.IntegrityConstraintViolation | errors.IntegrityError):
            return ProtocolError(f"{where} refuses what would change its past: {what}")
        if isinstance(error, psycopg.DataError):
            return InvalidValue(f"{where} cannot hold this: {what}")
        if isinstance(error, LOST):
            return self._not_connected(what, where)
        return PerdureError(f"{where}: {what}")

    def explain_open(self, error: BaseException) -> PerdureError:
        """The same of a log that was written before: it may be again, and no run is to fail of it meanwhile."""
        told = self.explain(error)
        return Unavailable(told.message, hint=told.hint) if isinstance(told, NoRights) else told

    def _not_connected(self, what: str, where: str) -> PerdureError:
        # libpq gives no code for what is refused while connecting, only the server's words.
        if "password" in what or "authentication" in what or "pg_hba.conf" in what or "role " in what:
            hint = "Check user and password in the url of the database, and its pg_hba.conf."
            return NoRights(f"{where} lets nobody in: {what}", hint=hint)
        if "database " in what and "does not exist" in what:
            return InvalidValue(f"{where} is not there: {what}", hint="createdb makes it.")
        hint = "Nothing that was acknowledged is lost; start it, and what was asked can be asked again."
        return Unavailable(f"{where} does not answer: {what}", hint=hint)


class Readers:
    """Some connections, for queries outside of transactions."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._free: list[Connection] = []
        self._permits = asyncio.Semaphore(READERS)
        self._over = asyncio.Event()

    async def rows(self, query: str, values: Any) -> list[tuple[Any, ...]]:
        """Asked again once where the connection had broken meanwhile."""
        async with self._permits:
            try:
                return await self._asked(query, values, fresh=False)
            except LOST as error:
                if isinstance(error, errors.QueryCanceled):
                    raise self._address.explain_open(error) from error
            except (psycopg.Error, TimeoutError, NoRights) as error:
                raise self._address.explain_open(error) from error
            try:
                return await self._asked(query, values, fresh=True)
            except (psycopg.Error, TimeoutError, NoRights) as error:
                raise self._address.explain_open(error) from error

    async def _asked(self, query: str, values: Any, *, fresh: bool) -> list[tuple[Any, ...]]:
        async with self._connection(fresh=fresh) as connection, asyncio.timeout(STATEMENT_S + CONNECT_S):
            return await (await connection.execute(query, values, binary=True)).fetchall()

    @asynccontextmanager
    async def _connection(self, *, fresh: bool) -> AsyncIterator[Connection]:
        if self._over.is_set():
            raise Unavailable(f"the context log {self._address.name} is closed")
        if fresh:
            await self._close_free()
        connection = self._free.pop() if self._free else await self._address.connect(patience_s=PATIENCE_S)
        try:
            yield connection
        except BaseException:
            await connection.close()  # whatever it is in the middle of
            raise
        if self._over.is_set():
            await connection.close()
        else:
            self._free.append(connection)

    async def _close_free(self) -> None:
        while self._free:
            await self._free.pop().close()

    async def close(self) -> None:
        self._over.set()
        await self._close_free()
