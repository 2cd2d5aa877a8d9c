"""The context log on PostgreSQL. ``open(url)`` is the only name that others use."""

from __future__ import annotations

from perdure.context.faults import Faults
from perdure.context.log import ContextLog
from perdure.errors import Unsupported

SCHEMA = "perdure"


async def open(url: str, *, schema: str = SCHEMA, faults: Faults | None = None) -> ContextLog:
    """Open or make the log in a database, in a schema of its own. Several servers may have it open.
    faults: it is to die at a write.

    url: ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``, as libpq reads it (what is not in it, its environment says).
    ``Unavailable``: the database does not answer. ``NoRights``: it lets nobody in like that, or nobody write.
    ``InvalidValue``: not such a url, or no such database. ``ProtocolError``: a log of a newer version.
    ``Unsupported``: psycopg is not installed, or the server is too old.
    """
    try:
        from perdure.context.postgres.database import PostgresDatabase
    except ImportError as error:
        raise Unsupported(
            f"PostgreSQL needs a package that is not installed: {error}", hint="pip install 'perdure[postgres]'"
        ) from error
    from perdure.context.stored import StoredLog

    return StoredLog(await PostgresDatabase.open(url, schema, faults))
