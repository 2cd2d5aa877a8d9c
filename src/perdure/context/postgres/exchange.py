"""Round trips of a connection where every one counts: pipeline mode of libpq itself, under psycopg.

What is asked goes out in one piece that ends with a sync. Outside of a transaction block PostgreSQL makes it one
transaction: it begins with the first statement and is committed at the sync, before anything is answered; after an
error what is left of the piece is skipped, and nothing of it was done. A pipeline of psycopg's own takes a system call,
often with a change of processes, and a way through the event loop for each statement.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from psycopg import OperationalError, errors, pq

from perdure.context.postgres.arrays import encoded
from perdure.context.postgres.connections import Connection

Asked = tuple[str, Sequence[tuple[Any, ...]]]  # a statement whose parameters are arrays, and the rows that they hold
_FAILED = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.PIPELINE_ABORTED)


class _Statement(NamedTuple):
    text: bytes
    kinds: list[str]  # of its parameters, without "[]"


@cache
def _statement(query: str) -> _Statement:
    """Parameters as libpq has them: the Nth ``%s::TYPE[]`` is ``$N::TYPE[]``."""
    numbers = itertools.count(1)
    text = re.sub("%s", lambda _: f"${next(numbers)}", query)
    return _Statement(text.encode(), re.findall(r"\$\d+::(\w+)\[\]", text))


class Exchange:
    """Of one connection, which is not used otherwise meanwhile. A piece at a time."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._pgconn = connection.pgconn
        self._socket = connection.fileno()
        self._loop = asyncio.get_running_loop()
        self._names: dict[str, bytes] = {}  # of statements that are prepared
        self._numbers = itertools.count(1)
        self._over = self._loop.create_future()  # the first error, None: all was answered
        self._error: Exception | None = None

    async def ask(self, statements: Sequence[Asked]) -> None:
        """Raises the first error that there is, as psycopg does. After that the connection is to be closed, unless it
        is one that the piece provokes by itself, outside of a transaction block."""
        new: dict[str, bytes] = {}
        self._over, self._error = self._loop.create_future(), None
        self._pgconn.enter_pipeline_mode()
        for query, rows in statements:
            statement = _statement(query)
            name = self._names.get(query) or new.get(query)
            if name is None:
                name = new[query] = b"perdure_%d" % next(self._numbers)
                self._pgconn.send_prepare(name, statement.text)
            values = encoded(statement.kinds, rows) if statement.kinds else []
            self._pgconn.send_query_prepared(name, values, [pq.Format.BINARY] * len(values))
        self._pgconn.pipeline_sync()
        self._loop.add_reader(self._socket, self._read)
        try:
            if self._pgconn.flush():  # it did not take all of it
                self._loop.add_writer(self._socket, self._write)
            error = await self._over
        finally:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
        if self._pgconn.status == pq.ConnStatus.OK:
            self._pgconn.exit_pipeline_mode()
        if error is not None:
            raise error  # some of ``new`` are not prepared
        self._names |= new

    def _write(self) -> None:
        try:
            if not self._pgconn.flush():
                self._loop.remove_writer(self._socket)
        except OperationalError as error:
            self._end(error)

    def _read(self) -> None:
        try:
            self._pgconn.consume_input()
            before: pq.abc.PGresult | None = None
            while not self._pgconn.is_busy():
                result = self._pgconn.get_result()
                if result is None and before is None:  # one is the end of a statement; two: there is no more
                    break
                before = result
                if result is None:
                    continue
                if result.status == pq.ExecStatus.PIPELINE_SYNC:
                    self._end(None)
                    return
                if result.status in _FAILED and self._error is None:
                    self._error = errors.error_from_result(result)
        except OperationalError as error:
            self._end(error)
        else:
            if self._pgconn.status != pq.ConnStatus.OK:  # what came is none of the protocol: libpq has given up
                said = self._pgconn.error_message.decode(errors="replace").strip()
                self._error = None  # it says the same, as if the database had refused something
                self._end(OperationalError(said or "the connection is broken"))

    def _end(self, error: Exception | None) -> None:
        if not self._over.done():
            self._over.set_result(self._error or error)
