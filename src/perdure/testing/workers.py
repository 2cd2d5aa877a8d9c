"""A house for tests of the replay road: the server in this process, its workers as real processes, no machine."""

from __future__ import annotations

import asyncio
import textwrap
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from perdure.context.log import ContextLog
from perdure.context.sqlite import open as open_in_file
from perdure.gateway.gateway import Gateway
from perdure.gateway.providers import Providers, RemoteProvider
from perdure.gateway.toolsecrets import ToolSecrets
from perdure.host.paths import Home
from perdure.model import Entry, RunInfo, RunState
from perdure.runs.driver import Settings
from perdure.runs.engine import Engine
from perdure.runs.pack import Python
from perdure.runs.record import StartRequest
from perdure.server.api import Api
from perdure.server.packages import Packages, own
from perdure.server.workers import Workers
from perdure.testing.house import nothing
from perdure.testing.machines import LocalMachines

DEADLINE_S = 30.0
QUICK = Settings(idle_grace_s=0.03, suspend_retry_s=0.1, backoff_s=0.02, backoff_max_s=0.1)
HEAD = "from perdure import Context, agent\nfrom perdure.agent import AsyncContext\n"


class WorkerHouse:
    """One state folder with its server, which can be ended and started again. ``limit``: of workers at once;
    ``open_log``: where its database is not the file in the folder."""

    def __init__(
        self,
        home: Home,
        provider_url: str = "http://127.0.0.1:9/v1",
        *,
        limit: int = 8,
        open_log: Callable[[], Awaitable[ContextLog]] | None = None,
    ) -> None:
        self.home = home.make()
        self._open_log = open_log or (lambda: open_in_file(self.home.database))
        self.settings = QUICK
        self.limit = limit
        self.secrets: ToolSecrets | None = None
        self.python_of: Callable[[str], Python] = lambda image: own()  # of images
        self._provider_url = provider_url
        self.log: ContextLog
        self.engine: Engine
        self.workers: Workers

    async def up(self) -> None:
        self.log = await self._open_log()
        providers = Providers({"test": RemoteProvider("test", self._provider_url, "", "tiny")}, "test")
        self.gateway = Gateway(self.log, providers)
        self.packages = Packages(self.home, self.log, self.python_of)
        self.workers = Workers(self.home, self.limit, self.packages)
        path = self.home.socket("perdured")
        path.unlink(missing_ok=True)
        self.engine = Engine(
            self.log,
            LocalMachines(nothing),
            self.gateway,
            calls_url=f"unix:{path}:/v1/calls",
            secret=b"secret",
            settings=self.settings,
            workers=self.workers,
            secrets=self.secrets,
        )
        self.engine.packs.packages = self.packages
        await self.engine.open()
        api = Api(self.home, self.engine, self.log, providers=["test"], url="", token="", started=time.time())
        self._runner = web.AppRunner(
            api.application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.UnixSite(self._runner, str(path)).start()

    async def down(self) -> None:
        """As the server ends: its workers end with it."""
        await self.engine.close()
        await self.workers.close()
        await self._runner.cleanup()
        await self.gateway.close()
        await self.log.close()

    async def start(self, source: str, given: Any = None, function: str = "f", **changes: Any) -> str:
        """Start a run of a function in ``source``; Context, AsyncContext and agent are imported."""
        text = HEAD + textwrap.dedent(source)
        request = StartRequest(source=text, file="x.py", function=function, input=given, durability="replay")
        info, _ = await self.engine.start(msgspec.structs.replace(request, **changes))
        return info.id

    async def ends(self, run_id: str) -> RunInfo:
        info = await self.engine.ended(run_id, DEADLINE_S)
        assert info.state in (RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED), info
        return info

    async def result(self, run_id: str) -> Any:
        info = await self.ends(run_id)
        assert info.state is RunState.COMPLETED, info.error
        return info.result

    async def until(self, run_id: str, kind: str, count: int = 1) -> Entry:
        """The ``count``-th entry of a kind."""
        seen = []
        try:
            async with asyncio.timeout(DEADLINE_S), aclosing(self.log.follow(run_id)) as entries:  # type: ignore[type-var]
                async for entry in entries:
                    seen.append(entry.kind)
                    if seen.count(kind) == count:
                        return entry
                    assert entry.kind not in ("run.failed", "run.cancelled"), entry
        except TimeoutError:
            raise AssertionError(f"no {kind}: {seen}") from None
        raise AssertionError("the log does not end")

    async def entries(self, run_id: str, kind: str | None = None) -> list[Entry]:
        return await self.log.read(run_id, kind=kind, limit=100_000)

    def worker(self, run_id: str) -> int:
        """The pid of the run's worker."""
        return next(pid for pid in _children(self.zygote) if _folder(pid).parent.name == run_id)

    @property
    def zygote(self) -> int:
        made = self.workers._zygote
        assert made is not None
        return made._process.pid


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _folder(pid: int) -> Path:
    """Its working directory."""
    return Path(f"/proc/{pid}/cwd").readlink()
