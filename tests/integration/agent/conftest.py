"""Agents as real processes under the real engine, log and gateway; only the microVM is missing.

A machine here is a process with a door of its own (what guestd and the node do together). It cannot be captured, so its
runs stay warm, and recover from their log alone.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from perdure.agent.bundle import sdk_files
from perdure.context import sqlite
from perdure.context.log import ContextLog
from perdure.errors import NotFound, PerdureError, StaleEpoch, Unavailable, Unsupported
from perdure.gateway.gateway import Gateway
from perdure.gateway.providers import Providers, RemoteProvider
from perdure.model import (
    Call,
    CallsEndpoint,
    LogPosition,
    NodeEvent,
    OutputPiece,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
    SnapshotInfo,
)
from perdure.runs.driver import Settings
from perdure.runs.engine import Engine
from perdure.runs.ports import MachinePlan, Sandbox


@dataclass
class Machine:
    info: SandboxInfo
    process: asyncio.subprocess.Process
    door: web.AppRunner
    output: bytes = b""
    waiting: asyncio.Task[None] | None = None


@dataclass
class Processes:
    """``runs.ports.Machines``, with processes for machines."""

    folder: Path
    node: None = None  # a process is found again nowhere
    engine: Engine | None = None
    machines: dict[str, Machine] = field(default_factory=dict)
    endings: list[asyncio.Task[None]] = field(default_factory=list)
    happened: asyncio.Queue[NodeEvent] = field(default_factory=asyncio.Queue)

    async def start(self, plan: MachinePlan, calls: CallsEndpoint) -> str:
        await self.remove(plan.run_id)
        for name, content in {**sdk_files(), f"agents/{plan.agent.partition(':')[0]}": plan.source}.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_bytes() != content:  # others are reading it
                path.write_bytes(content)
        door = await self._open_door(calls)
        host, port = door.addresses[0][:2]
        environ = {"PYTHONPATH": str(self.folder), "PERDURE_DOOR": f"{host}:{port}", "PATH": os.environ["PATH"]}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-m", "perdure.agent.run", f"{self.folder}/agents/{plan.agent}",
            env=environ, cwd=self.folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        spec = SandboxSpec(image=plan.image)
        info = SandboxInfo(id=plan.run_id, name="", spec=spec, state=SandboxState.RUNNING, created=0.0)
        machine = self.machines[plan.run_id] = Machine(info, process, door)
        machine.waiting = asyncio.create_task(self._wait(machine))
        self.endings.append(machine.waiting)
        return plan.run_id

    async def _wait(self, machine: Machine) -> None:
        machine.output, _ = await machine.process.communicate()
        status = machine.process.returncode or 0
        cause = "exit" if status >= 0 else "machine-died"
        machine.info = SandboxInfo(
            id=machine.info.id, name="", spec=machine.info.spec, state=SandboxState.EXITED, created=0.0,
            exit_status=status, cause=cause,
        )  # fmt: skip
        await machine.door.cleanup()
        self.happened.put_nowait(NodeEvent(time=0.0, kind="sandbox.exited", sandbox_id=machine.info.id))

    async def _open_door(self, calls: CallsEndpoint) -> web.AppRunner:
        async def handle(request: web.Request) -> web.StreamResponse:
            call = Call(
                run_id=calls.run_id, epoch=calls.epoch, lane=request.headers["perdure-lane"],
                ordinal=int(request.headers["perdure-ordinal"]), method=request.method, path=request.path, headers={},
                body=await request.read(),
            )  # fmt: skip
            assert self.engine is not None
            try:
                answer = await self.engine.answer(call, calls.token)
            except (Unavailable, StaleEpoch):
                assert request.transport is not None
                request.transport.abort()  # the SDK asks again; a stale machine is killed meanwhile
                return web.Response()
            except PerdureError as error:
                return web.json_response({"error": error.to_json()}, status=error.http_status)
            response = web.StreamResponse(status=answer.status, headers=dict(answer.headers))
            await response.prepare(request)
            async for piece in answer.body:
                await response.write(piece)
            return response

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    async def kill(self, run_id: str) -> None:
        """kill -9, as a VM dies."""
        machine = self.machines[run_id]
        machine.process.kill()
        assert machine.waiting is not None
        await asyncio.shield(machine.waiting)  # its door is closed, even if the engine is closed meanwhile

    async def inspect(self, sandbox_id: str) -> SandboxInfo:
        if sandbox_id not in self.machines:
            raise NotFound(f"no sandbox {sandbox_id}")
        return self.machines[sandbox_id].info

    async def suspend(self, sandbox_id: str, position: LogPosition) -> SnapshotInfo:
        raise Unsupported("a process cannot be captured")

    async def resume(self, sandbox_id: str, snapshot: str, calls: CallsEndpoint) -> None:
        raise NotFound(f"no snapshot {snapshot}")

    async def stop(self, sandbox_id: str, timeout_s: float) -> None:
        raise NotImplementedError

    async def output(self, sandbox_id: str, tail_bytes: int) -> bytes:
        return self.machines[sandbox_id].output[-tail_bytes:]

    async def printed(
        self, sandbox_id: str, life: str = "", offset: int = 0, *, follow: bool = False, tail: int | None = None
    ) -> AsyncGenerator[OutputPiece]:
        if data := self.machines[sandbox_id].output[offset:]:
            yield OutputPiece(life=sandbox_id, offset=offset, stream="stdout", at=offset, data=data)

    async def remove(self, run_id: str) -> None:
        if run_id not in self.machines:
            return
        machine = self.machines.pop(run_id)
        if machine.process.returncode is None:
            machine.process.kill()
        assert machine.waiting is not None
        await asyncio.shield(machine.waiting)  # its door is closed, even if the engine is closed meanwhile

    async def of_runs(self) -> list[Sandbox]:
        return []  # a process has no snapshots, and is nobody's else

    async def events(self) -> AsyncIterator[NodeEvent]:
        yield NodeEvent(time=0.0, kind="node.connected")
        while True:
            yield await self.happened.get()


@dataclass
class House:
    engine: Engine
    log: ContextLog
    machines: Processes


@pytest.fixture
async def provider_url() -> str:
    raise NotImplementedError("each test module brings its provider")


@pytest.fixture
async def house(tmp_path: Path, provider_url: str) -> AsyncIterator[House]:
    log = await sqlite.open(tmp_path / "perdure.db")
    gateway = Gateway(log, Providers({"test": RemoteProvider("test", provider_url, "", "tiny")}, "test"))
    machines = Processes(tmp_path / "guest")
    engine = Engine(log, machines, gateway, calls_url="unix:/x", secret=b"s", settings=Settings(backoff_s=0.02))
    machines.engine = engine
    await engine.open()
    yield House(engine, log, machines)
    for run_id in list(machines.machines):
        await machines.remove(run_id)
    await engine.close()
    await asyncio.gather(*machines.endings)
    await gateway.close()
    await log.close()
