"""Where a server keeps its runs: ``HOME/settings.toml``, its table ``[server]``; the environment comes first.

[server]
database = ""   # PERDURE_DATABASE: postgresql://USER:PASSWORD@HOST:PORT/DATABASE; nothing: the file HOME/perdure.db
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping

from perdure.context import postgres, sqlite
from perdure.context.faults import Faults
from perdure.context.log import ContextLog
from perdure.errors import AlreadyRunning, InvalidValue
from perdure.host.paths import Home
from perdure.host.settings import Table

SCHEMES = ("postgresql://", "postgres://")


def wanted(home: Home, environ: Mapping[str, str] | None = None) -> str:
    """The url of a PostgreSQL database, or "" for the file of this home. InvalidValue names the wrong line."""
    table = Table(home, "server", {"database": "PERDURE_DATABASE"}, environ)
    url = table.text("database")
    if url and not url.startswith(SCHEMES):
        hint = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE; leave it out for the file in the home"
        raise InvalidValue(f"{table.where('database')} names no PostgreSQL database", hint=hint)
    return url


class ServerLog:
    """The log of one home: no other server of this home has it, and what it had acknowledged is there."""

    def __init__(self, context: ContextLog, lock: int) -> None:
        self.context = context
        self._lock = lock

    @staticmethod
    async def open(home: Home, faults: Faults | None = None) -> ServerLog:
        """AlreadyRunning: another server serves this home. Conflict: an older backup was restored."""
        url = wanted(home)
        lock = _acquire(home)
        try:
            if url:
                context = await postgres.open(url, faults=faults)
            else:
                # What agents say is for nobody else (where a group may use the node's socket).
                home.database.touch(mode=0o600)
                context = await sqlite.open(home.database, faults=faults)
            try:
                await context.remember(home.root / "acknowledged")
            except BaseException:
                await context.close()
                raise
        except BaseException:
            os.close(lock)
            raise
        return ServerLog(context, lock)

    async def close(self) -> None:
        await self.context.close()
        os.close(self._lock)


def _acquire(home: Home) -> int:
    """One server per home, wherever its database is: sockets, machines and tokens are the home's."""
    lock = os.open(home.run / "perdured.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        message = f"another server serves {home.root}"
        raise AlreadyRunning(message, hint="Use it, or end it with `perdure down`.") from error
    return lock
