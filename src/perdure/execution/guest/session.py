"""The host's end of one sandbox's channel. No sockets here: the node moves the bytes (docs/formats/channel.md).

A session outlives its connections. The guest dials, says what it has (HELLO), and both sides send again what the other
has not acknowledged; so requests are done once and each byte of a stream arrives once, over snapshots, restores and
restarts of the node. After a restore from an *older* snapshot begin a fresh session: it takes the guest as it is.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from perdure.errors import (
    CommandNotExecutable,
    CommandNotFound,
    Conflict,
    GuestFailed,
    InvalidValue,
    PerdureError,
    ProtocolError,
    Unavailable,
    Unsupported,
)
from perdure.execution.guest.call import GuestCall
from perdure.execution.guest.files import FileEntry, GuestFiles
from perdure.execution.guest.process import Process
from perdure.execution.guest.tree import GuestTree
from perdure.formats import channel, memoryreport, usagereport
from perdure.formats.usagereport import GuestUsage
from perdure.model import ExecSpec, MemoryUse

__all__ = ["FileEntry", "GuestCall", "GuestFiles", "GuestInfo", "GuestSession", "Identity", "Process", "Quiesced"]

_USAGE_TRIES = 2  # connections that may break over the question until a guest counts as one that does not know it

_log = logging.getLogger(__name__)
_ERRORS: dict[int, type[PerdureError]] = {
    channel.REPLY_INVALID: InvalidValue,
    channel.REPLY_CONFLICT: Conflict,
    channel.REPLY_FAILED: GuestFailed,
    channel.REPLY_NOT_EXECUTABLE: CommandNotExecutable,
    channel.REPLY_NOT_FOUND: CommandNotFound,
}


@dataclass(frozen=True)
class GuestInfo:
    """What the guest said of itself when its newest connection began."""

    boot_id: str  # 32 hex digits, drawn at boot: the same in every restore of one boot
    configured: bool  # False: a template that waits for ``configure``
    frozen: bool  # the workload stands still (a restore after ``quiesce``): ``wake`` or ``thaw`` it
    auto_ordinal: int  # the ordinal of the last call on lane "auto"
    open_calls: int


@dataclass(frozen=True)
class Identity:
    """Who a guest is from now on: a fork must not be taken for its parent."""

    hostname: str = ""  # empty: keep
    machine_id: str = ""  # 32 hex digits; empty: keep


@dataclass(frozen=True)
class Quiesced:
    """How far the guest came within the budget."""

    frozen: bool
    synced: bool
    dropped: bool  # page cache given back
    memory_use: MemoryUse | None = None  # who has the memory that is left; an older or a slow guest does not tell


@dataclass
class _OpenCall:
    opened: channel.CallOpen
    body: bytearray
    call: GuestCall | None = None
    task: asyncio.Task[None] | None = None


class GuestSession:
    """``on_call`` runs in a task of its own for each call, until it has ended the answer. The task is cancelled when
    the guest's program hung up or the connection broke; in the latter case the guest asks again, and ``on_call`` is
    called again with the offset reached.
    """

    def __init__(self, on_call: Callable[[GuestCall], Awaitable[None]]) -> None:
        self.info: GuestInfo | None = None
        self.files = GuestFiles(self)
        self.tree = GuestTree(self)
        self._on_call = on_call
        self._write: Callable[[bytes], None] | None = None
        self._reader = channel.FrameReader()
        self._hello: channel.Hello | None = None
        self._hello_processes: dict[int, channel.GuestProcess] = {}
        self._ready = asyncio.Event()
        self._error: PerdureError | None = None
        self._next_request = secrets.randbits(62)
        self._requests: dict[int, tuple[channel.Frame, asyncio.Future[channel.Reply]]] = {}
        self._processes: dict[int, Process] = {}
        self._released: set[int] = set()
        self._calls: dict[int, _OpenCall] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked_usage: dict[int, asyncio.Future[channel.Reply]] = {}
        self._usage_tries = _USAGE_TRIES

    # The connection -------------------------------------------------------------------------------------------------

    def connection_up(self, send: Callable[[bytes], None]) -> None:
        """The guest has dialled: ``send`` takes bytes for it until ``connection_down``."""
        self.connection_down()
        self._reader = channel.FrameReader()
        self._write = send

    def data_received(self, data: bytes) -> None:
        """Bytes of the guest. Raises ProtocolError: then end the connection (the guest dials again)."""
        for frame in self._reader.feed(data):
            self._handle(frame)

    def connection_down(self) -> None:
        """The connection is gone; nothing else is: whatever was asked goes on with the next one."""
        self._write = None
        self._ready.clear()
        self._hello = None
        self._hello_processes = {}
        if self._asked_usage:
            self._usage_tries -= 1
        for asked in self._asked_usage.values():
            if not asked.done():
                asked.set_exception(Unavailable("the guest's connection ended"))
        for call in self._calls.values():
            if call.task is not None:
                call.task.cancel()
        self._calls = {}

    def close(self, error: PerdureError) -> None:
        """The machine is gone for good: whatever waits raises ``error``, and so does what is asked from now on."""
        self.connection_down()
        self._error = error
        self._ready.set()
        for _, future in self._requests.values():
            if not future.done():
                future.set_exception(error)
        for process in self._processes.values():
            process.on_lost(error)

    @property
    def connected(self) -> bool:
        """The guest and this side have greeted each other."""
        return self._write is not None and self._ready.is_set()

    @property
    def processes(self) -> Mapping[str, Process]:
        """By id: those of this session, and those that the guest's hello told of."""
        return {process.id: process for process in self._processes.values()}

    async def ready(self, timeout_s: float) -> GuestInfo:
        """Wait for the guest's hello. Raises GuestFailed when it does not come."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError:
            raise GuestFailed(
                f"guestd did not connect within {timeout_s:g} s", hint="see the machine's console"
            ) from None
        if self._error is not None:
            raise self._error
        assert self.info is not None
        return self.info

    # What one asks a guest ------------------------------------------------------------------------------------------

    async def configure(self, *, hostname: str, timeout_s: float = 30) -> None:
        """Mount the image that was put into the template's drives; again: no effect. Raises GuestFailed."""
        budget_ms = int(timeout_s * 1000)
        await self.request(lambda request: channel.Configure(request, budget_ms, hostname))

    async def exec(
        self, spec: ExecSpec, *, process_id: str | None = None, limits: Sequence[str] = (), groups: Sequence[str] = ()
    ) -> Process:
        """Start a process; ``process_id`` (12 hex digits, drawn if not given) names it also to later sessions: asking
        again for one that is there starts nothing. ``limits``: see ``channel.Exec``; ``groups``: that its user is in
        besides.

        Raises CommandNotFound (127), CommandNotExecutable (126), InvalidValue (user, group, limit, working directory),
        Conflict (not configured yet), GuestFailed.
        """
        flags = (channel.EXEC_TTY if spec.tty else 0) | (channel.EXEC_STDIN if spec.stdin else 0)
        number = secrets.randbits(48) if process_id is None else int(process_id, 16)
        return await self._start(
            number,
            lambda request: channel.Exec(
                request,
                number,
                flags,
                spec.rows,
                spec.columns,
                spec.user,
                spec.cwd,
                tuple(spec.command),
                tuple(f"{name}={value}" for name, value in spec.env.items()),
                tuple(limits),
                tuple(groups),
            ),
            tty=spec.tty,
        )

    async def tool(self, *argv: str) -> Process:
        """Start one of guestd's file tools (``files`` does); it runs also while the workload is frozen."""
        number = secrets.randbits(48)
        flags = channel.EXEC_TOOL | channel.EXEC_STDIN
        return await self._start(
            number,
            lambda request: channel.Exec(request, number, flags, 0, 0, "", "", argv, ()),
            window_bytes=channel.TOOL_WINDOW_BYTES,
        )

    async def quiesce(self, budget_s: float) -> Quiesced:
        """Freeze the workload, write its files out, give memory back: as far as the budget goes."""
        reply = await self.request(lambda request: channel.Quiesce(request, int(budget_s * 1000)))
        done = reply.value
        return Quiesced(
            frozen=bool(done & channel.QUIESCED_FROZEN),
            synced=bool(done & channel.QUIESCED_SYNCED),
            dropped=bool(done & channel.QUIESCED_DROPPED),
            memory_use=memoryreport.parse(reply.message),
        )

    async def thaw(self) -> None:
        """A quiesce that no capture follows: the workload goes on."""
        await self.request(channel.Thaw)

    async def wake(self, realtime_s: float, entropy: bytes, identity: Identity | None = None) -> None:
        """After a restore: clock, entropy (up to 512 bytes), identity, and only then the workload goes on.

        Raises GuestFailed if the clock or the entropy was not taken (the workload goes on all the same).
        """
        name = identity or Identity()
        await self.request(
            lambda request: channel.Wake(request, int(realtime_s * 1e9), entropy, name.hostname, name.machine_id)
        )

    async def usage(self) -> GuestUsage | None:
        """What the workload uses; None for a report of another version. Asked once, on this connection only.

        Raises Unavailable (there is no connection, or it ended), Unsupported (a guest from before there was this).
        """
        if self._usage_tries <= 0:
            raise Unsupported("this guest does not tell what it uses", hint="Start the sandbox anew.")
        if not self.connected:
            raise Unavailable("the guest is not connected")
        number, self._next_request = self._next_request, self._next_request + 1
        answer = self._asked_usage[number] = asyncio.get_running_loop().create_future()
        self.send(channel.Usage(number))
        try:
            reply = await answer
        finally:
            del self._asked_usage[number]
        self._usage_tries = _USAGE_TRIES
        return usagereport.parse(reply.message)

    async def power_off(self) -> None:
        """Kill what runs, write files out, end the machine. Returns when the guest has begun."""
        await self.request(channel.PowerOff)

    # What processes and files need ----------------------------------------------------------------------------------

    def send(self, frame: channel.Frame) -> None:
        if self._write is not None and self._ready.is_set():
            self._write(frame.encode())

    async def request(self, build: Callable[[int], channel.Frame]) -> channel.Reply:
        """Ask until it is answered, on as many connections as that takes. Raises the error that the answer is."""
        if self._error is not None:
            raise self._error
        number, self._next_request = self._next_request, self._next_request + 1
        try:
            frame = build(number)
            frame.encode()
        except ValueError as error:
            raise InvalidValue(f"too large for the guest: {error}") from error
        future: asyncio.Future[channel.Reply] = asyncio.get_running_loop().create_future()
        self._requests[number] = (frame, future)
        self.send(frame)
        try:
            reply = await future
        finally:
            del self._requests[number]
        if reply.code != channel.REPLY_OK:
            raise _ERRORS.get(reply.code, GuestFailed)(reply.message)
        return reply

    def released(self, process: Process) -> None:
        self._processes.pop(process.number, None)
        self._released.add(process.number)

    async def _start(
        self,
        number: int,
        build: Callable[[int], channel.Frame],
        *,
        tty: bool = False,
        window_bytes: int = channel.WINDOW_BYTES,
    ) -> Process:
        process = self._processes.get(number)
        known = process is not None
        if process is None:
            process = self._processes[number] = Process(number, tty=tty, owner=self, window_bytes=window_bytes)
            self._released.discard(number)
        try:
            reply = await self.request(build)
        except PerdureError:
            if not known:
                self.released(process)
                self.send(channel.Release(number))
            raise
        process.pid = reply.value
        return process

    # Frames ---------------------------------------------------------------------------------------------------------

    def _handle(self, frame: channel.Frame) -> None:
        match frame:
            case channel.Hello(version=version):
                if version != channel.VERSION:
                    raise ProtocolError(
                        f"guest: guestd speaks version {version} of the channel, this node {channel.VERSION}",
                        hint="its snapshot was made by another version of this program",
                    )
                self._hello = frame
            case channel.GuestProcess(process=number) if self._hello:
                self._hello_processes[number] = frame
            case channel.Synced() if self._hello:
                self._welcome(self._hello)
            case _ if not self.connected:
                raise ProtocolError(f"guest: {type(frame).__name__} came before the greeting was over")
            case channel.Reply(request=request):
                if (waiting := self._requests.get(request)) and not waiting[1].done():
                    waiting[1].set_result(frame)
                elif (asked := self._asked_usage.get(request)) and not asked.done():
                    asked.set_result(frame)
            case channel.Output() | channel.OutputEnd() | channel.StdinAck() | channel.Exited():
                if process := self._processes.get(frame.process):
                    process.on_frame(frame)
            case channel.CallOpen(call=number):
                self._calls[number] = _OpenCall(frame, bytearray())
                self._begin_if_whole(self._calls[number])
            case channel.CallBody(call=number, offset=offset, data=data):
                open_call = self._calls.get(number)
                if open_call is None or offset != len(open_call.body):
                    raise ProtocolError(f"guest: the body of call {number} has a hole before byte {offset}")
                open_call.body += data
                self._begin_if_whole(open_call)
            case channel.CallAck(call=number, offset=offset):
                if (known := self._calls.get(number)) and known.call:
                    known.call.on_taken(offset)
            case channel.CallCancel(call=number):
                if (cancelled := self._calls.pop(number, None)) and cancelled.task:
                    cancelled.task.cancel()
            case _:
                raise ProtocolError(f"guest: a guest does not send {type(frame).__name__}")

    def _welcome(self, hello: channel.Hello) -> None:
        """The guest has said all: take its word, then send what it lacks."""
        assert self._write is not None
        self.info = GuestInfo(
            hello.boot_id.hex(), bool(hello.configured), bool(hello.frozen), hello.auto_ordinal, hello.open_calls
        )
        heard, self._hello_processes, self._hello = self._hello_processes, {}, None
        starting = {frame.process for frame, _ in self._requests.values() if isinstance(frame, channel.Exec)}
        releases = []
        for number, said in heard.items():
            if number in self._released and said.phase == channel.EXITED:
                releases.append(channel.Release(number))  # it did not hear it the first time
                continue
            self._released.discard(number)
            known = self._processes.get(number)
            process = known or Process(number, tty=bool(said.tty), owner=self)
            self._processes[number] = process
            process.on_hello(said, adopted=known is None)
        self._released &= heard.keys()
        for number in self._processes.keys() - heard.keys():
            if number in starting:
                self._processes[number].on_absent()
            else:
                process = self._processes.pop(number)
                process.on_lost(
                    GuestFailed(f"the guest no longer has process {process.id}", hint="it was restored or restarted")
                )
        self._write(channel.Welcome(channel.VERSION).encode())
        self._ready.set()
        for frame, _ in self._requests.values():
            self.send(frame)
        for release in releases:
            self.send(release)
        for process in self._processes.values():
            process.on_welcomed()

    # Calls ----------------------------------------------------------------------------------------------------------

    def _begin_if_whole(self, open_call: _OpenCall) -> None:
        if len(open_call.body) < open_call.opened.body_bytes or open_call.task is not None:
            return
        open_call.call = GuestCall(open_call.opened, bytes(open_call.body), self._sender())
        open_call.task = asyncio.get_running_loop().create_task(self._answer(open_call, open_call.call))
        self._tasks.add(open_call.task)
        open_call.task.add_done_callback(self._tasks.discard)

    def _sender(self) -> Callable[[channel.Frame], None]:
        """Sends on the connection of now only: call numbers of another one may mean other calls."""
        write = self._write

        def send(frame: channel.Frame) -> None:
            if self._write is write:
                self.send(frame)

        return send

    async def _answer(self, open_call: _OpenCall, call: GuestCall) -> None:
        try:
            await self._on_call(call)
        except PerdureError as error:
            if not call.answered:
                await call.respond(error.http_status, {"content-type": "application/json"})
                await call.write(msgspec.json.encode({"error": error.to_json()}))
                await call.end()
        except Exception:
            _log.exception("call %s/%d %s %s failed", call.lane, call.ordinal, call.method, call.path)
        if not call.ended:
            call.abort()
        if self._calls.get(open_call.opened.call) is open_call:
            del self._calls[open_call.opened.call]
