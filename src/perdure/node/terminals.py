"""Interactive sessions: a WebSocket on one side, a process's streams on the other.

Binary messages: from the node one byte stream number (1, 2) and data; to the node stdin. Text messages are JSON: to
the node ``{"exec": ExecSpec}`` (first, of an exec), ``{"eof": true}``, ``{"resize": [rows, columns]}``,
``{"signal": NAME}``; from it ``{"state": STATE}`` when that changes, ``{"error": {...}}``, last ``{"exit": status}``.
The WebSocket stays open while the sandbox is suspended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from aiohttp import WSMsgType, web

from perdure.errors import Conflict, GuestFailed, InvalidValue, MachineFailed, PerdureError, TooSlow
from perdure.execution.guest.session import Process
from perdure.execution.sandboxes.sandbox import Sandbox, signal_number
from perdure.execution.sandboxes.waking import is_asleep, may_wake
from perdure.model import ExecSpec, SandboxState, WakeReason
from perdure.node import visit

MESSAGE_MAX_BYTES = 8 << 20
Cells = Annotated[int, msgspec.Meta(ge=0, le=65535)]  # of a terminal: rows, columns
CLOSE_S = 2.0  # for a client to answer a close


class _Wish(msgspec.Struct, frozen=True):
    """A text message to the node, but for the first one of an exec."""

    eof: bool = False
    resize: tuple[Cells, Cells] | None = None
    signal: str = ""


Send = Callable[[dict[str, Any]], Awaitable[None]]
GetProcess = Callable[[], Awaitable[Process]]


async def exec_session(request: web.Request, sandbox: Sandbox) -> web.WebSocketResponse:
    """Run the process that the first message names. A sandbox that sleeps is woken; the client is told first."""
    with sandbox.activity.busy():
        return await _exec_session(request, sandbox)


async def _exec_session(request: web.Request, sandbox: Sandbox) -> web.WebSocketResponse:
    socket = await _open(request)
    try:
        here = visit.current()
        async with asyncio.timeout(here.patience_s if here is not None else None):
            first = await socket.receive_json()
        spec = _first(first)
        if is_asleep(sandbox) and may_wake(sandbox, WakeReason.EXEC):
            await socket.send_json({"state": str(SandboxState.RESUMING)})
        process = await sandbox.exec(spec)
    except TimeoutError:
        await _fail(socket, TooSlow("the first message of an exec did not come"))
        return socket
    except (PerdureError, TypeError, ValueError) as error:
        await _fail(socket, error)
        return socket

    async def current() -> Process:
        return await sandbox.process(process.id)

    await _serve(socket, sandbox, lambda: _follow_process(socket, current), current)
    if process.exit_status is None:
        sandbox.discard(await current())
    return socket


async def attach_session(
    request: web.Request, sandbox: Sandbox, *, from_start: bool, waits: bool, wakes: bool = False
) -> web.WebSocketResponse:
    """The main process: its output as the log has it, its stdin. ``waits``: of an exited sandbox, until it lives again
    (it is about to be started). ``wakes``: a sandbox that sleeps is woken."""
    with sandbox.activity.busy():
        if wakes and is_asleep(sandbox):
            await sandbox.awake(WakeReason.EXEC)
        return await _attach_session(request, sandbox, from_start=from_start, waits=waits)


async def _attach_session(
    request: web.Request, sandbox: Sandbox, *, from_start: bool, waits: bool
) -> web.WebSocketResponse:
    if not from_start and not waits and sandbox.state in (SandboxState.EXITED, SandboxState.REMOVING):
        raise Conflict(f"sandbox {sandbox.record.name} is {sandbox.state}", hint="`fcrun logs` shows what it wrote.")
    offset = 0 if from_start else sandbox.log.size
    socket = await _open(request)

    async def current() -> Process:
        return await sandbox.process(sandbox.main_id)

    async def outputs() -> int:
        while waits and sandbox.state is SandboxState.EXITED:
            await sandbox.changed.next.wait()
        return await _follow_log(socket, sandbox, offset)

    await _serve(socket, sandbox, outputs, current)
    return socket


async def _open(request: web.Request) -> web.WebSocketResponse:
    if "Sec-WebSocket-Protocol" in request.headers:
        raise InvalidValue("this WebSocket has no subprotocols", hint="Leave Sec-WebSocket-Protocol out.")
    # no heartbeat: a client that only pauses (a pager, a slow pipe) answers none, and a dead one closes its socket
    socket = web.WebSocketResponse(max_msg_size=MESSAGE_MAX_BYTES, compress=False, timeout=CLOSE_S)
    await socket.prepare(request)
    return socket


def _first(message: Any) -> ExecSpec:
    if not isinstance(message, dict) or "exec" not in message:
        raise InvalidValue("the first message of an exec must be {'exec': ...}")
    try:
        return msgspec.convert(message["exec"], ExecSpec)
    except msgspec.ValidationError as error:
        raise InvalidValue(f"exec: {error}") from error


async def _fail(socket: web.WebSocketResponse, error: Exception) -> None:
    known = error if isinstance(error, PerdureError) else InvalidValue(f"the client broke the protocol: {error}")
    if (here := visit.current()) is not None:
        here.end(known.http_status, known.code)
    if not socket.closed:
        await socket.send_json({"error": known.to_json()})
        await socket.close()


async def _serve(
    socket: web.WebSocketResponse, sandbox: Sandbox, outputs: Callable[[], Awaitable[int]], current: GetProcess
) -> None:
    """Both directions at once, until the process has ended or the client has gone."""
    output = asyncio.ensure_future(outputs())
    inputs = asyncio.create_task(_inputs(socket, current))
    told = asyncio.create_task(_tell_states(socket, sandbox))
    try:
        await asyncio.wait({output, inputs}, return_when=asyncio.FIRST_COMPLETED)
        if not output.done():
            if isinstance(error := inputs.exception(), InvalidValue):
                await _fail(socket, error)
            return  # the client has gone
        await socket.send_json({"exit": output.result()})
        await socket.close()
    except PerdureError as error:
        await _fail(socket, error)
    except ConnectionError:
        pass  # it left in this moment
    finally:
        for task in (output, inputs, told):
            task.cancel()
        await asyncio.gather(output, inputs, told, return_exceptions=True)


async def _follow_process(socket: web.WebSocketResponse, current: GetProcess) -> int:
    while True:
        process = await current()
        try:
            async for stream, offset, data in process.output():
                await socket.send_bytes(bytes((stream,)) + data)
                process.ack(stream, offset + len(data))
            status = await process.wait()
            process.release()
            return status
        except (MachineFailed, GuestFailed, Conflict):
            await asyncio.sleep(
                0
            )  # its machine is gone; ``current`` finds it in the next one, or says that there is none


async def _follow_log(socket: web.WebSocketResponse, sandbox: Sandbox, offset: int) -> int:
    ended = (SandboxState.EXITED, SandboxState.REMOVING)
    async for record in sandbox.log.read(offset, lambda: sandbox.state not in ended):
        await socket.send_bytes(bytes((record.stream,)) + record.data)
    info = await sandbox.wait_exited()
    if info.exit_status is None:
        raise MachineFailed(
            f"the machine of sandbox {info.name} died: {info.cause}",
            hint=f"Go on from its last snapshot: fcrun resume {info.name}" if info.snapshot else info.detail,
            cause=info.cause,
        )
    return info.exit_status


async def _inputs(socket: web.WebSocketResponse, current: GetProcess) -> None:
    async for message in socket:
        if message.type is WSMsgType.BINARY:
            await (await current()).write_stdin(message.data)
        elif message.type is WSMsgType.TEXT:
            try:
                wish = msgspec.json.decode(message.data, type=_Wish)
            except msgspec.MsgspecError as error:
                raise InvalidValue(f"the client broke the protocol: {error}") from error
            number = signal_number(wish.signal) if wish.signal else 0
            if wish.eof:
                (await current()).close_stdin()
            if wish.resize is not None:
                (await current()).resize(*wish.resize)
            if number:
                await (await current()).signal(number)


async def _tell_states(socket: web.WebSocketResponse, sandbox: Sandbox) -> None:
    while True:
        changed = sandbox.changed.next
        await changed.wait()
        await socket.send_json({"state": str(sandbox.state)})
