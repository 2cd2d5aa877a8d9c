"""A database that is slow, read-only, full, locked or away while a step is at work: nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from perdure.context.log import ContextLog
from perdure.context.postgres import connections
from perdure.context.postgres import open as open_in_postgres
from perdure.errors import NoSpace, PerdureError, Unavailable
from perdure.host.paths import Home
from perdure.testing.postgres import PostgresServer, binaries, postgres_server
from perdure.testing.smalldisks import clear, fill, mounted
from perdure.testing.workers import DEADLINE_S, WorkerHouse

FAR_S = 0.03

AGENT = """
import os
@agent
def f(ctx, ledger, gate):
    def effect():
        with open(ledger, "a") as file:
            file.write("once\\n")
        open(gate).read()  # until the test lets it go
        return os.urandom(150_000).hex()  # what can be made smaller might fit
    return [len(ctx.step("effect", effect)), ctx.step("next", str, 1)]
"""


class Tried(logging.Handler):
    """Set once the server has told that an answer is to be asked for again."""

    def __init__(self) -> None:
        super().__init__()
        self.event = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("call main/step:effect/0"):
            self.event.set()


@pytest.fixture
def tried(caplog: pytest.LogCaptureFixture) -> Iterator[asyncio.Event]:
    handler, logger = Tried(), logging.getLogger("perdure.server.calls")
    caplog.set_level(logging.INFO, logger.name)
    logger.addHandler(handler)
    yield handler.event
    logger.removeHandler(handler)


class Way:
    """How a database is no good for a while."""

    open_log: Callable[[], Awaitable[ContextLog]] | None = None

    def begin(self) -> None: ...
    def end(self) -> None: ...


class FullFile(Way):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self) -> None:
        fill(self._folder, 0)

    def end(self) -> None:
        clear(self._folder)


class Away(Way):
    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.open_log = lambda: open_in_postgres(server.url)

    def begin(self) -> None:
        self._server.kill()

    def end(self) -> None:
        self._server.start()


class FullServer(Away):
    def __init__(self, server: PostgresServer, folder: Path) -> None:
        super().__init__(server)
        self._folder = folder

    def begin(self) -> None:
        fill(self._folder, 0)

    def end(self) -> None:
        clear(self._folder)


class ReadOnly(Away):
    def begin(self) -> None:
        self._set("on")

    def end(self) -> None:
        self._set("off")

    def _set(self, value: str) -> None:
        with psycopg.connect(self._server.url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            connection.execute("SELECT pg_reload_conf()")


class Locked(Away):
    """By another program, for longer than a statement waits."""

    def begin(self) -> None:
        self._holder = psycopg.connect(self._server.url)
        self._holder.execute("LOCK TABLE perdure.runs IN ACCESS EXCLUSIVE MODE")

    def end(self) -> None:
        self._holder.close()


@contextmanager
def way(name: str, folder: Path) -> Iterator[Way]:
    if name == "sqlite-full":
        with mounted(folder, 32):
            yield FullFile(folder)
        return
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    if name != "postgres-full":
        with postgres_server() as server:
            yield {"postgres-away": Away, "postgres-read-only": ReadOnly, "postgres-locked": Locked}[name](server)
        return
    short = Path(tempfile.mkdtemp(prefix="perdure-pg-", dir="/tmp"))
    with mounted(short / "disk", 256, 10_000) as disk:
        (disk / "server").mkdir()
        short.chmod(0o755)
        server = PostgresServer(disk / "server")
        server.start()
        try:
            yield FullServer(server, disk)
        finally:
            server.stop(signal.SIGQUIT)
    shutil.rmtree(short)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("sqlite-full", NoSpace),
        ("postgres-full", NoSpace),
        ("postgres-read-only", Unavailable),
        ("postgres-away", Unavailable),
        ("postgres-locked", Unavailable),
    ],
)
async def test_a_step_ends_while_nothing_can_be_written(
    tmp_path: Path, tried: asyncio.Event, monkeypatch: pytest.MonkeyPatch, name: str, error: type[PerdureError]
) -> None:
    monkeypatch.setattr(connections, "LOCK_S", 1)
    ledger, gate = tmp_path / "ledger", tmp_path / "gate"
    os.mkfifo(gate)
    with way(name, tmp_path / "home") as ill:
        road = WorkerHouse(Home(tmp_path / "home", tmp_path / "cache"), open_log=ill.open_log)
        await road.up()
        try:
            run_id = await road.start(AGENT, {"ledger": str(ledger), "gate": str(gate)})
            with await asyncio.to_thread(gate.open, "w"):
                ill.begin()
                with pytest.raises(error) as told:
                    await road.start("@agent\ndef f(ctx, x): pass\n", {"x": os.urandom(150_000).hex()})
                assert told.value.hint
            await asyncio.wait_for(tried.wait(), DEADLINE_S)  # its result could not be kept
            ill.end()
            assert await road.result(run_id) == [300_000, "1"]
            assert ledger.read_text() == "once\n"
            kinds = [entry.kind for entry in await road.entries(run_id)]
            assert [kind for kind in kinds if kind.startswith("step.")] == ["step.intent", "step.result"] * 2
        finally:
            await road.down()


@asynccontextmanager
async def far(server: PostgresServer, folder: Path) -> AsyncIterator[str]:
    """Its url where each message takes ``FAR_S``."""

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(1 << 16):
                await asyncio.sleep(FAR_S)
                target.write(data)
                await target.drain()
        target.close()
        with suppress(ConnectionError):
            await target.wait_closed()

    relays = set[asyncio.Task[None] | None]()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relays.add(asyncio.current_task())
        there, here = await asyncio.open_unix_connection(str(server.folder / ".s.PGSQL.5432"))
        await asyncio.gather(copy(reader, here), copy(there, writer))

    async with await asyncio.start_unix_server(relay, folder / ".s.PGSQL.5432"):
        yield server.url.replace(str(server.folder), str(folder))
        await asyncio.wait_for(asyncio.gather(*filter(None, relays)), DEADLINE_S)  # their clients have closed


async def test_a_database_that_is_slow_only_takes_longer(tmp_path: Path) -> None:
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    with postgres_server() as server, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        async with far(server, Path(folder)) as url:
            road = WorkerHouse(Home(tmp_path / "home", tmp_path / "cache"), open_log=lambda: open_in_postgres(url))
            await road.up()
            try:
                started = [
                    await road.start("@agent\ndef f(ctx):\n    return ctx.step('a', int, 1)\n") for _ in range(2)
                ]
                assert [await road.result(run_id) for run_id in started] == [1, 1]
                for run_id in started:
                    assert len(await road.entries(run_id, "step.intent")) == 1
            finally:
                await road.down()
