"""Small real machines for tests of runs: no VM, but a memory that is captured, lost and restored.

A *program* is a generator function. It yields ``Ask`` (one call through the door, or a list of them at once) and
``Effect`` (something done to the world) and gets their answers. A machine's memory is the list of those answers: they
and nothing else decide where a deterministic generator stands. So a capture copies the list; a restore runs the
generator up to its end again and asks once more what was open, as guestd does. A call is asked until it is answered.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from perdure.errors import Conflict, NotFound, PerdureError, StaleEpoch, Unavailable
from perdure.model import (
    Answer,
    Call,
    CallsEndpoint,
    FileChange,
    HeldSnapshot,
    LogPosition,
    NodeEvent,
    NodePlace,
    OutputPiece,
    SandboxInfo,
    SandboxSpec,
    SandboxState,
    SnapshotInfo,
    new_id,
)
from perdure.runs.ports import MachinePlan, Sandbox

RETRY_S = 0.01
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Ask:
    """One call. ``name`` is that of the runs API, or a whole path; ``at``: an ordinal that is used again."""

    name: str
    body: Any = None
    lane: str = "main"
    at: int | None = None

    @property
    def path(self) -> str:
        return self.name if self.name.startswith("/") else f"/perdure/v1/{self.name}"


@dataclass(frozen=True)
class Effect:
    """Something that happens outside: it is not undone by a restore. ``do`` may be a coroutine function."""

    do: Callable[[], Any]


@dataclass(frozen=True)
class Said:
    """An answer: status, and its JSON (or text)."""

    status: int
    value: Any


Program = Callable[[], Generator[Any, Any, Any]]
Door = Callable[[Call, str], Awaitable[Answer]]
Key = tuple[str, int, str]  # of a call: lane, ordinal and path


@dataclass(frozen=True)
class _Heard:
    """At the end of a captured memory: what the program has of answers on their way."""

    parts: dict[Key, bytes]


@dataclass
class _Sandbox:
    spec: SandboxSpec
    program: Program
    state: SandboxState = SandboxState.CREATED
    memory: list[Any] = field(default_factory=list)
    parts: dict[Key, bytearray] = field(default_factory=dict)  # of answers that are on their way
    calls: CallsEndpoint | None = None
    task: asyncio.Task[None] | None = None
    cause: str = ""
    exit_status: int | None = None
    snapshot: SnapshotInfo | None = None
    captures: dict[str, list[Any]] = field(default_factory=dict)
    positions: dict[str, LogPosition | None] = field(default_factory=dict)  # of captures
    files: dict[str, bytes] = field(default_factory=dict)  # as tests put them there
    printed: list[tuple[int, bytes]] = field(default_factory=lambda: [(0, b"output\n")])  # with where in its output
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def held(self) -> list[HeldSnapshot]:
        return [HeldSnapshot(digests=[digest], position=self.positions.get(digest)) for digest in self.captures]

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class LocalMachines:
    """``runs.ports.Machines`` in this process. ``door`` answers calls; put another one there when a server restarts.

    ``before``: async functions by operation ("start", "suspend", "resume", …), awaited first: they hold or fail it.
    """

    node: NodePlace

    def __init__(self, program: Program, beside: LocalMachines | None = None) -> None:
        """beside: those of another server, at the same node."""
        self.program = program
        self.node = (
            NodePlace(id=new_id(), host="host", address="unix:///fcrund.sock") if beside is None else beside.node
        )
        self.stores: dict[tuple[str, str], _Sandbox] = {}  # beyond the node, by url and digest; tests share it
        self._pulled: dict[str, _Sandbox] = {}
        self.door: Door | None = None
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}
        self.done: list[str] = []  # operations that succeeded
        self.plans: list[MachinePlan] = []  # of what was started
        self.sandboxes: dict[str, _Sandbox] = beside.sandboxes if beside else {}
        self._listeners: list[asyncio.Queue[NodeEvent]] = []
        self._numbers: itertools.count[int] = beside._numbers if beside else itertools.count(1)
        self._attempts: set[asyncio.Task[int]] = set()

    # -- the port

    async def start(self, plan: MachinePlan, calls: CallsEndpoint) -> str:
        await self.remove(plan.run_id)
        await self._begin("start")
        self.plans.append(plan)
        sandbox_id = self.create(SandboxSpec(image=plan.image, labels={"run": plan.run_id}, calls=calls), self.program)
        self._run(sandbox_id, calls)
        self.done.append("start")
        return sandbox_id

    def create(self, spec: SandboxSpec, program: Program) -> str:
        """A sandbox that nothing runs in yet."""
        sandbox_id = f"sandbox{next(self._numbers)}"
        self.sandboxes[sandbox_id] = _Sandbox(spec, program)
        return sandbox_id

    async def inspect(self, sandbox_id: str) -> SandboxInfo:
        sandbox = self._get(sandbox_id)
        return SandboxInfo(
            id=sandbox_id,
            name=sandbox_id,
            spec=msgspec.structs.replace(sandbox.spec, calls=sandbox.calls),
            state=sandbox.state,
            created=0.0,
            cause=sandbox.cause,
            exit_status=sandbox.exit_status,
            snapshot=sandbox.snapshot,
            held=sandbox.held,
            epoch=sandbox.calls.epoch if sandbox.calls else None,
        )

    async def suspend(self, sandbox_id: str, position: LogPosition) -> SnapshotInfo:
        await self._begin("suspend")
        sandbox = self._running(sandbox_id)
        await self._freeze(sandbox)
        sandbox.snapshot = self._capture(sandbox_id, sandbox, position)
        sandbox.state = SandboxState.SUSPENDED
        self._tell("sandbox.suspended", sandbox_id)
        self.done.append("suspend")
        return sandbox.snapshot

    async def checkpoint(self, sandbox_id: str, position: LogPosition | None) -> SnapshotInfo:
        await self._begin("checkpoint")
        sandbox = self._running(sandbox_id)
        sandbox.snapshot = self._capture(sandbox_id, sandbox, position)
        self.done.append("checkpoint")
        return sandbox.snapshot

    async def forget(self, sandbox_id: str, snapshot: str) -> None:
        await self._begin("forget")
        if self._get(sandbox_id).captures.pop(snapshot, None) is None:
            raise NotFound(f"no snapshot {snapshot}")
        self.done.append("forget")

    async def resume(self, sandbox_id: str, snapshot: str, calls: CallsEndpoint) -> None:
        await self._begin("resume")
        sandbox = self._get(sandbox_id)
        if snapshot not in sandbox.captures:
            raise NotFound(f"no snapshot {snapshot}")
        await self._freeze(sandbox)
        sandbox.memory = list(sandbox.captures[snapshot])
        self._run(sandbox_id, calls)
        self.done.append("resume")

    async def fork(self, run_id: str, snapshot: str, calls: CallsEndpoint) -> str:
        await self.remove(run_id)
        await self._begin("fork")
        for source in (*self.sandboxes.values(), *self._pulled.values()):
            if snapshot in source.captures:
                break
        else:
            raise NotFound(f"no snapshot {snapshot}")
        sandbox_id = f"sandbox{next(self._numbers)}"
        spec = SandboxSpec(image=source.spec.image, labels={"run": run_id}, calls=calls)
        memory = source.captures[snapshot]
        self.sandboxes[sandbox_id] = _Sandbox(spec, source.program, memory=list(memory), captures={snapshot: memory})
        self._run(sandbox_id, calls)
        self.done.append("fork")
        return sandbox_id

    async def push(self, snapshot: str, store: str) -> None:
        await self._begin("push")
        source = next((one for one in self.sandboxes.values() if snapshot in one.captures), None)
        if source is None:
            raise NotFound(f"no snapshot {snapshot}")
        captures = {snapshot: list(source.captures[snapshot])}
        self.stores[store, snapshot] = _Sandbox(source.spec, source.program, captures=captures)
        self.done.append("push")

    async def pull(self, snapshot: str, store: str) -> None:
        await self._begin("pull")
        if (store, snapshot) not in self.stores:
            raise NotFound(f"{store} has no snapshot {snapshot}")
        self._pulled[snapshot] = self.stores[store, snapshot]
        self.done.append("pull")

    async def of_runs(self) -> list[Sandbox]:
        await self._begin("of_runs")
        return [
            Sandbox(
                id=name,
                run_id=one.spec.labels["run"],
                epoch=one.calls.epoch if one.calls else None,
                snapshots=one.held,
            )
            for name, one in self.sandboxes.items()
        ]

    async def discard(self, sandbox_id: str) -> None:
        await self._begin("discard")
        sandbox = self._get(sandbox_id)
        del self.sandboxes[sandbox_id]
        await self._freeze(sandbox)
        sandbox.notify()
        self.done.append("discard")

    async def stop(self, sandbox_id: str, timeout_s: float) -> None:
        await self._begin("stop")
        sandbox = self._get(sandbox_id)
        await self._freeze(sandbox)
        sandbox.state, sandbox.cause, sandbox.exit_status = SandboxState.EXITED, "stopped", 143
        self._tell("sandbox.exited", sandbox_id)
        self.done.append("stop")

    async def changes(self, sandbox_id: str) -> list[FileChange]:
        files = self._get(sandbox_id).files
        return [
            FileChange(kind="A", path=path, type="file", size_bytes=len(files[path]), digest=files[path].hex())
            for path in sorted(files)
        ]

    async def file(self, sandbox_id: str, path: str) -> bytes:
        if path not in self._get(sandbox_id).files:
            raise NotFound(f"{path} is as in the image")
        return self._get(sandbox_id).files[path]

    async def output(self, sandbox_id: str, tail_bytes: int) -> bytes:
        return b"".join([piece.data async for piece in self.printed(sandbox_id)])[-tail_bytes:]

    async def printed(
        self, sandbox_id: str, life: str = "", offset: int = 0, *, follow: bool = False, tail: int | None = None
    ) -> AsyncGenerator[OutputPiece]:
        sandbox, offset = self._get(sandbox_id), offset if life in ("", sandbox_id) else 0
        if tail is not None:
            whole = b"".join(data for _, data in sandbox.printed)
            offset = len(whole) - len(b"".join(whole.splitlines(keepends=True)[-tail:]))
        while True:
            changed, goes_on, end = sandbox.changed, follow and sandbox.state is not SandboxState.EXITED, 0
            for at, data in list(sandbox.printed):
                skip, end = max(offset - end, 0), end + len(data)
                if skip < len(data):
                    start = end - len(data) + skip
                    yield OutputPiece(life=sandbox_id, offset=start, stream="stdout", at=at + skip, data=data[skip:])
                    offset = end
            if not goes_on or sandbox_id not in self.sandboxes:
                return
            await changed.wait()

    def prints(self, sandbox_id: str, data: bytes, *, at: int | None = None) -> None:
        """Its program writes; ``at``: where in its output, after a restore."""
        sandbox = self._get(sandbox_id)
        last, written = sandbox.printed[-1] if sandbox.printed else (0, b"")
        sandbox.printed.append((last + len(written) if at is None else at, data))
        sandbox.notify()

    async def remove(self, run_id: str) -> None:
        await self._begin("remove")
        for sandbox_id in [i for i, s in self.sandboxes.items() if s.spec.labels["run"] == run_id]:
            sandbox = self.sandboxes.pop(sandbox_id)
            await self._freeze(sandbox)
            sandbox.notify()

    async def events(self) -> AsyncIterator[NodeEvent]:
        queue: asyncio.Queue[NodeEvent] = asyncio.Queue()
        self._listeners.append(queue)
        try:
            yield NodeEvent(time=time.time(), kind="node.connected")
            while True:
                yield await queue.get()
        finally:
            self._listeners.remove(queue)

    # -- what tests do to them

    async def kill(self, sandbox_id: str, cause: str = "machine-died") -> None:
        """The machine is gone with its memory; its captures stay."""
        sandbox = self._get(sandbox_id)
        if sandbox.state is SandboxState.RUNNING:
            await self._freeze(sandbox)
            sandbox.state, sandbox.cause = SandboxState.EXITED, cause
            self._tell("sandbox.exited", sandbox_id)

    def hang_up(self) -> None:
        """Break every connection at the door, as the end of a server does."""
        self.door = None
        for attempt in self._attempts:
            attempt.cancel()

    async def close(self) -> None:
        for sandbox in list(self.sandboxes.values()):  # the engine lives, and may remove some meanwhile
            await self._freeze(sandbox)

    # -- inside

    async def _begin(self, operation: str) -> None:
        if operation in self.before:
            await self.before[operation]()

    def _get(self, sandbox_id: str) -> _Sandbox:
        if sandbox_id not in self.sandboxes:
            raise NotFound(f"no sandbox {sandbox_id}")
        return self.sandboxes[sandbox_id]

    def _running(self, sandbox_id: str) -> _Sandbox:
        sandbox = self._get(sandbox_id)
        if sandbox.state is not SandboxState.RUNNING:
            raise Conflict(f"{sandbox_id} is {sandbox.state}")
        return sandbox

    def _capture(self, sandbox_id: str, sandbox: _Sandbox, position: LogPosition | None) -> SnapshotInfo:
        digest = f"sha256:{self.node.id}{next(self._numbers):052x}"
        heard = {key: bytes(part) for key, part in sandbox.parts.items() if part}
        sandbox.captures[digest] = [*sandbox.memory, *([_Heard(heard)] if heard else [])]
        sandbox.positions[digest] = position
        return SnapshotInfo(
            digest=digest, sandbox_id=sandbox_id, created=time.time(), memory_bytes=1000, position=position
        )

    def _tell(self, kind: str, sandbox_id: str) -> None:
        if sandbox_id in self.sandboxes:
            self.sandboxes[sandbox_id].notify()
        for queue in self._listeners:
            queue.put_nowait(NodeEvent(time=time.time(), kind=kind, sandbox_id=sandbox_id))

    async def _freeze(self, sandbox: _Sandbox) -> None:
        if sandbox.task is not None and not sandbox.task.done():
            sandbox.task.cancel()
            await asyncio.wait({sandbox.task})

    def _run(self, sandbox_id: str, calls: CallsEndpoint) -> None:
        sandbox = self.sandboxes[sandbox_id]
        sandbox.calls, sandbox.state, sandbox.cause = calls, SandboxState.RUNNING, ""
        is_cut = bool(sandbox.memory) and isinstance(sandbox.memory[-1], _Heard)
        parts = sandbox.memory.pop().parts if is_cut else {}
        sandbox.parts = {key: bytearray(part) for key, part in parts.items()}
        sandbox.task = asyncio.create_task(self._live(sandbox_id, sandbox), name=sandbox_id)

    async def _live(self, sandbox_id: str, sandbox: _Sandbox) -> None:
        program, remembered, ordinals = sandbox.program(), list(sandbox.memory), dict[str, int]()
        try:
            wanted = next(program)
            while True:
                numbered = _number(wanted, ordinals)
                if remembered:
                    answer = remembered.pop(0)
                else:
                    answer = await self._do(sandbox, numbered)
                    sandbox.memory.append(answer)
                wanted = program.send(answer)
        except StopIteration as end:
            sandbox.cause, sandbox.exit_status = "exit", 0 if end.value is None else int(end.value)
        except StaleEpoch:
            sandbox.cause = "stale-epoch"
        sandbox.state = SandboxState.EXITED
        self._tell("sandbox.exited", sandbox_id)

    async def _do(self, sandbox: _Sandbox, wanted: Any) -> Any:
        if isinstance(wanted, Effect):
            done = wanted.do()
            return await done if inspect.isawaitable(done) else done
        if isinstance(wanted, list):
            return list(await asyncio.gather(*(self._ask(sandbox, ask) for ask in wanted)))
        return await self._ask(sandbox, wanted)

    async def _ask(self, sandbox: _Sandbox, ask: Ask) -> Said:
        calls = sandbox.calls
        assert calls is not None
        body = b"" if ask.body is None else msgspec.json.encode(ask.body)
        key, status = (ask.lane, ask.at or 0, ask.path), 0  # a wait and its withdrawal differ in the last
        got = sandbox.parts.setdefault(key, bytearray())

        async def attempt() -> int:
            call = Call(calls.run_id, calls.epoch, ask.lane, ask.at or 0, "POST", ask.path, {}, body, len(got))
            if self.door is None:
                raise Unavailable("nobody at the door")
            answer = await self.door(call, calls.token)
            async for piece in answer.body:
                got.extend(piece)
            return answer.status

        while not status:
            task = asyncio.create_task(attempt())
            self._attempts.add(task)
            try:
                await asyncio.wait({task})
            finally:
                self._attempts.discard(task)
                task.cancel()
            error = None if task.cancelled() else task.exception()
            if task.cancelled() or isinstance(error, Unavailable | OSError):
                await asyncio.sleep(RETRY_S)
            elif isinstance(error, PerdureError) and not isinstance(error, StaleEpoch):
                sandbox.parts.pop(key, None)
                return Said(error.http_status, {"error": error.to_json()})
            else:
                status = task.result()
        sandbox.parts.pop(key, None)
        try:
            return Said(status, msgspec.json.decode(bytes(got)))
        except msgspec.DecodeError:
            return Said(status, got.decode())


def _number(wanted: Any, ordinals: dict[str, int]) -> Any:
    """Asks with their ordinals: counted in the machine's memory, so that a restore rewinds them."""
    if isinstance(wanted, list):
        return [_number(one, ordinals) for one in wanted]
    if not isinstance(wanted, Ask) or wanted.at is not None:
        return wanted
    ordinal = ordinals.get(wanted.lane, 0)
    ordinals[wanted.lane] = ordinal + 1
    return Ask(wanted.name, wanted.body, wanted.lane, ordinal)
