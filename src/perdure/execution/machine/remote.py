"""The node's end of the line: the launcher and the keepers that it talks to (docs/design/0001-contracts.md, 3)."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from perdure.errors import MachineFailed, PerdureError, ProtocolError, from_json
from perdure.execution.machine.wire import CONNECT_TIMEOUT_S, Closed, Wire
from perdure.keeper import line
from perdure.model import LauncherAddress

SEND_HIGH_BYTES = 1 << 20  # ``drain`` waits while more than this is queued for the channel


class ChannelEnd(Protocol):
    """What takes the guest's connection: ``execution.guest.session.GuestSession`` is one."""

    def connection_up(self, send: Callable[[bytes], None]) -> None: ...
    def data_received(self, data: bytes) -> None:
        """May raise ProtocolError: the connection is then ended, and the guest dials again."""

    def connection_down(self) -> None: ...


@dataclass(frozen=True)
class KeptMachine:
    """One line of ``Launcher.list``: a living keeper, or the record that a dead machine left."""

    sandbox_id: str
    alive: bool
    pid: int = 0
    exit: Mapping[str, Any] = field(default_factory=dict)  # dead: {"cause", "detail", "time"}


class Launcher:
    """Talks to one launcher. Every operation is a connection of its own, so nothing is kept open."""

    def __init__(self, address: LauncherAddress) -> None:
        self.address = address

    @classmethod
    async def connect(cls, address: LauncherAddress, *, timeout_s: float = CONNECT_TIMEOUT_S) -> Launcher:
        """A launcher that has answered a ping. Raises Unavailable, NoRights (a wrong token)."""
        launcher = cls(address)
        await launcher.ping(timeout_s=timeout_s)
        return launcher

    async def ping(self, *, timeout_s: float = CONNECT_TIMEOUT_S) -> dict[str, Any]:
        """{"pid", "version", "python", "keepers": how many, "memory_bytes": of that host}."""
        return await self._ask({"want": "ping"}, timeout_s)

    async def list(self, *, timeout_s: float = CONNECT_TIMEOUT_S) -> list[KeptMachine]:
        """All keepers that live, and all records of machines that died and were not forgotten."""
        answer = await self._ask({"want": "list"}, timeout_s)
        return [
            KeptMachine(str(kept["sandbox"]), bool(kept["alive"]), int(kept.get("pid", 0)), kept.get("exit") or {})
            for kept in answer["keepers"]
        ]

    async def forget(self, sandbox_id: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Remove the record that a dead machine of this sandbox left. None there: nothing happens."""
        await self._ask({"want": "forget", "sandbox": sandbox_id}, timeout_s)

    async def kill(self, sandbox_id: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """End the keeper of this sandbox by SIGKILL, with its machine and their network: one that does not end when it
        is told to. None there: nothing happens. Raises MachineFailed where it lives on."""
        await self._ask({"want": "kill", "sandbox": sandbox_id}, timeout_s)

    async def look(
        self, paths: Sequence[str], *, forget_all: bool = False, timeout_s: float = CONNECT_TIMEOUT_S
    ) -> None:
        """Look at these names again: a kernel that remembers files which are gone lets go of them. ``forget_all``: it
        forgets all names that are not in use, which costs it looking for them again."""
        await self._ask({"want": "look", "paths": list(paths), "all": forget_all}, timeout_s)

    async def forget_network(self, bridge: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Remove a network's bridge. None there: nothing happens."""
        await self._ask({"want": "forget-network", "bridge": bridge}, timeout_s)

    async def spawn(
        self, sandbox_id: str, *, firecracker: str = "", pager: str = "", timeout_s: float = CONNECT_TIMEOUT_S
    ) -> Keeper:
        """A new keeper for this sandbox. Raises AlreadyRunning when one lives.

        ``firecracker``, ``pager``: what its restore will name; a keeper that has started them ahead takes it over then.
        """
        parts = {"firecracker": firecracker, "pager": pager} if firecracker and pager else {}
        try:
            return await self._keeper("spawn", sandbox_id, timeout_s, parts)
        except Closed:  # one that was started ahead died as it was handed over: the launcher has another, or makes one
            return await self._keeper("spawn", sandbox_id, timeout_s, parts)

    async def attach(self, sandbox_id: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> Keeper:
        """The living keeper of this sandbox; a connection that another node has to it is ended.

        Raises NotFound when none lives; its details carry ``cause`` and ``detail`` where the machine left a record.
        """
        return await self._keeper("attach", sandbox_id, timeout_s)

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        output: Callable[[bytes], None] | None = None,
        timeout_s: float = 600.0,
    ) -> int:
        """Run a program below the line; its exit status, or -n for signal n. ``output`` gets its stdout and stderr.

        For benchmarks and tests. The program ends when this is cancelled.
        """
        hello = {"want": "run", "argv": list(argv), "env": dict(env or {}), "cwd": cwd}
        async with asyncio.timeout(timeout_s):
            wire = await Wire.open(self.address, hello)
            try:
                while True:
                    message = await wire.control()
                    if "output" in message and output is not None:
                        output(binascii.a2b_base64(message["output"]))
                    if "exit" in message:
                        return int(message["exit"])
            finally:
                wire.close()

    async def _ask(self, hello: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        wire = await Wire.open(self.address, hello, timeout_s=timeout_s)
        try:
            return await wire.answer(timeout_s)
        finally:
            wire.close()

    async def _keeper(
        self, want: str, sandbox_id: str, timeout_s: float, more: Mapping[str, str] | None = None
    ) -> Keeper:
        hello = {"want": want, "sandbox": sandbox_id, **(more or {})}
        wire = await Wire.open(self.address, hello, timeout_s=timeout_s)
        try:
            facts = await wire.answer(timeout_s)
        except BaseException:
            wire.close()
            raise
        return Keeper(sandbox_id, facts, wire)


class Keeper:
    """The connection to one keeper.

    ``facts``: what the keeper said when it took the connection, as ``stat`` answers. ``on_event`` gets every event,
    ``{"event": "exited", "cause", "detail"}``; ``closed`` is done when the connection has ended, for any reason.
    """

    def __init__(self, sandbox_id: str, facts: dict[str, Any], wire: Wire) -> None:
        self.sandbox_id = sandbox_id
        self.facts = facts
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_event: Callable[[dict[str, Any]], None] | None = None
        self._events: list[dict[str, Any]] = []
        self._wire = wire
        self._requests: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last_id = 0
        self._end: ChannelEnd | None = None
        self._up = False  # the guest has a connection to the keeper
        self._generation = 0  # which connection of the guest: a ``send`` of an older one does nothing
        self._held: list[bytes] = []  # arrived while nothing takes it; at most a window
        self._credit = 0  # channel bytes that the keeper still takes
        self._taken = 0  # bytes that were taken of it, of which it was not told
        self._queue = bytearray()  # to send once it takes more
        self._paused = False
        self._drained = asyncio.Event()
        self._drained.set()
        wire.receive(self._frame, self._lost)

    async def request(self, op: str, *, timeout_s: float | None = None, **params: Any) -> dict[str, Any]:
        """One operation of the contract; its answer.

        Raises what the keeper answered (``errors.from_json``), MachineFailed when the keeper is gone, TimeoutError.
        """
        if self.closed.done():
            raise self._gone()
        self._last_id += 1
        number = self._last_id
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._requests[number] = answer
        try:
            self._wire.write(line.encode_control({"id": number, "op": op, **params}))
            async with asyncio.timeout(timeout_s):
                return await answer
        finally:
            del self._requests[number]

    def connect_channel(self, end: ChannelEnd) -> None:
        """Give the guest's connection, now and each time it dials again, to ``end`` (a ``GuestSession``)."""
        if self._end is not None and self._up:
            self._end.connection_down()
        self._end = end
        if self._up:
            end.connection_up(self._sender())
            held, self._held = self._held, []
            for data in held:
                self._deliver(data)

    def reset_channel(self) -> None:
        """End the guest's connection: guestd dials again at once, and its open calls and streams go on."""
        if self._up:
            self._wire.write(line.encode(line.CHANNEL_DOWN))

    def pause_channel(self) -> None:
        """Let the guest send no more than its window; requests and events go on."""
        self._paused = True

    def resume_channel(self) -> None:
        self._paused = False
        held, self._held = self._held, []
        for data in held:
            self._deliver(data)

    async def drain(self) -> None:
        """Wait until what was sent to the guest has mostly left, or its connection ended."""
        await self._drained.wait()

    def close(self) -> None:
        """End this connection. The machine runs on; its keeper waits for the next node."""
        self._wire.close()

    def listen(self, on_event: Callable[[dict[str, Any]], None]) -> None:
        """Set ``on_event``, and give it what came before."""
        self.on_event = on_event
        events, self._events = self._events, []
        for event in events:
            on_event(event)

    # What arrives

    def _frame(self, kind: int, payload: bytes) -> None:
        if kind == line.CONTROL:
            self._control(line.decode_control(payload))
        elif kind == line.CHANNEL:
            if self._up:
                self._deliver(payload)
        elif kind == line.CHANNEL_UP:
            self._channel_down()
            self._up, self._credit, self._taken = True, line.WINDOW, 0
            self._wire.write(line.encode(line.CHANNEL_UP))
            if self._end is not None:
                self._end.connection_up(self._sender())
        elif kind == line.CHANNEL_DOWN:
            self._channel_down()
        else:
            self._credit += line.decode_window(payload)
            self._flush()

    def _control(self, message: dict[str, Any]) -> None:
        if "event" in message:
            if self.on_event is not None:
                self.on_event(message)
            else:
                self._events.append(message)
            return
        answer = self._requests.get(message.get("id", 0))
        if answer is None or answer.done():
            return  # who asked has given up
        if "error" in message:
            answer.set_exception(from_json(message["error"]))
        else:
            answer.set_result(message.get("ok") or {})

    def _deliver(self, data: bytes) -> None:
        if self._end is None or self._paused:
            self._held.append(data)
            return
        try:
            self._end.data_received(data)
        except ProtocolError:
            self.reset_channel()
            self._channel_down()
            return
        self._taken += len(data)
        if self._taken >= line.WINDOW_STEP:
            self._wire.write(line.encode_window(self._taken))
            self._taken = 0

    def _channel_down(self) -> None:
        if not self._up:
            return
        self._up = False
        self._generation += 1
        self._held.clear()
        self._queue.clear()
        self._drained.set()
        if self._end is not None:
            self._end.connection_down()

    def _lost(self, reason: PerdureError | None) -> None:
        self._channel_down()
        for answer in self._requests.values():
            if not answer.done():
                answer.set_exception(reason or self._gone())
        if not self.closed.done():
            self.closed.set_result(None)

    def _gone(self) -> MachineFailed:
        return MachineFailed(
            f"the keeper of sandbox {self.sandbox_id} is gone",
            hint="Its machine ended with it. Resume the sandbox from its last snapshot.",
        )

    # What leaves

    def _sender(self) -> Callable[[bytes], None]:
        generation = self._generation

        def send(data: bytes) -> None:
            if generation == self._generation and self._up:
                self._queue += data
                self._flush()

        return send

    def _flush(self) -> None:
        while self._queue and self._credit:
            size = min(len(self._queue), self._credit, line.CHUNK)
            self._wire.write(line.encode(line.CHANNEL, bytes(self._queue[:size])))
            del self._queue[:size]
            self._credit -= size
        if len(self._queue) > SEND_HIGH_BYTES:
            self._drained.clear()
        else:
            self._drained.set()
