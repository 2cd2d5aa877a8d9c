"""The databases that lives are lived on, as CRASH_DATABASE names them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from perdure.testing.postgres import PostgresServer, postgres_server
from perdure.testing.will import Will

TITLES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}
DATABASES = tuple(TITLES)


def words(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Those of a variable."""
    return tuple(environ.get(name, "").replace(",", " ").split())


def asked(environ: Mapping[str, str]) -> tuple[str, ...]:
    return words(environ, "CRASH_DATABASE") or DATABASES


@contextmanager
def server_of(database: str, will: Will | None) -> Iterator[PostgresServer | None]:
    """A server of it that runs, where it has one. will: of the program."""
    if database != "postgres":
        yield None
        return
    with postgres_server() as server:
        if will is not None:
            will.kill(server.pid)
            will.remove(server.folder)
        yield server
