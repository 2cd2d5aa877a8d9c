"""How the node's API answers: JSON, errors of the tree, streams, and progress of what takes long."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from perdure.errors import InvalidValue, NotFound, PerdureError, WrongMethod
from perdure.host.progress import Progress, silent
from perdure.node import visit

NDJSON = "application/x-ndjson"
SERVER = "fcrund"  # strangers need not know which version of what it is
PROGRESS_INTERVAL_S = 0.1

T = TypeVar("T")
_log = logging.getLogger(__name__)


def ok(value: Any = None, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


class Failure(web.Response):
    """An error as an answer."""

    def __init__(self, error: PerdureError) -> None:
        self.error_code = error.code
        data = msgspec.json.encode({"error": error.to_json()})
        super().__init__(body=data, status=error.http_status, content_type="application/json")


def failure(error: PerdureError) -> Failure:
    return Failure(error)


def known(error: Exception) -> PerdureError:
    """The error as one of the tree; what is not expected is logged with its trace."""
    if isinstance(error, PerdureError):
        return error
    if isinstance(error, web.HTTPNotFound):
        return NotFound("no such path in the node's API")
    if isinstance(error, web.HTTPMethodNotAllowed):
        return WrongMethod(f"this path does not know {error.method}, but {', '.join(sorted(error.allowed_methods))}")
    if isinstance(error, web.HTTPException):
        return InvalidValue(error.reason)
    _log.error("internal error", exc_info=error)
    return PerdureError(f"internal error: {error!r}", hint="The node's log has the trace.")


@web.middleware
async def errors_as_json(request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]) -> Any:
    try:
        return await handler(request)
    except ConnectionError as error:
        if request.transport is None or request.transport.is_closing():
            return web.Response(status=499)  # nobody is there to read it
        return failure(known(error))
    except Exception as error:
        return failure(known(error))


async def body(request: web.Request, kind: type[T]) -> T:
    """The request's JSON as a value of ``kind``; an empty body is ``{}``. Raises InvalidValue that names the field."""
    data = b"".join([piece async for piece in visit.pieces(request)])
    try:
        wish = msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidValue(f"the body of {request.method} {request.path}: {error}") from error
    visit.check_wish(wish)
    return wish


def number(request: web.Request, name: str) -> float | None:
    """A number of the query, None where it is not given. Raises InvalidValue."""
    if (text := request.query.get(name)) is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidValue(f"{name} is {text!r}: not a number")
    return value


async def stream(
    request: web.Request, content_type: str, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": content_type, **(headers or {})})
    await response.prepare(request)
    return response


async def sent(request: web.Request, tar: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """A tar as the answer. What fails at once is told as an error; what fails later breaks the answer off."""
    async with aclosing(tar):
        first = await anext(tar)  # at least its end mark
        response = await stream(request, "application/x-tar")
        try:
            await response.write(first)
            async for data in tar:
                await response.write(data)
        except (PerdureError, OSError) as error:
            _log.warning("%s %s breaks off: %s", request.method, request.path, error)
            if request.transport is not None:
                request.transport.abort()  # or half a tar would look like a whole one
            raise ConnectionResetError from error
        return response


async def long(
    request: web.Request, work: Callable[[Progress], Awaitable[Any]], status: int = 200
) -> web.StreamResponse:
    """Do ``work(progress)``; a client that accepts NDJSON sees the progress on the way.

    The work goes on when the client leaves: what was begun ends in a known state.
    """
    if request.headers.get("Accept") != NDJSON:
        return ok(await asyncio.shield(asyncio.ensure_future(work(silent))), status)
    loop = asyncio.get_running_loop()
    steps: asyncio.Queue[tuple[str, int, int] | None] = asyncio.Queue()

    def progress(what: str, done: int, total: int) -> None:
        loop.call_soon_threadsafe(steps.put_nowait, (what, done, total))  # called from threads too

    task = asyncio.ensure_future(work(progress))
    task.add_done_callback(lambda _: steps.put_nowait(None))
    response = await stream(request, NDJSON)
    try:
        shown, due = "", 0.0
        while (step := await steps.get()) is not None:
            what, done, total = step
            if what != shown or loop.time() >= due or done == total:
                shown, due = what, loop.time() + PROGRESS_INTERVAL_S
                await response.write(msgspec.json.encode({"progress": step}) + b"\n")
        last = _told(task)
        await response.write(msgspec.json.encode(last) + b"\n")
        await response.write_eof()
    except ConnectionError:
        await asyncio.wait({task})
        if "error" in (left := _told(task)):
            _log.info("%s %s failed after its client left: %s", request.method, request.path, left["error"])
    return response


def _told(task: asyncio.Future[Any]) -> dict[str, Any]:
    """How it went: as the last line of an answer. The audit is told first."""
    status, code = 200, ""
    try:
        last: dict[str, Any] = {"ok": task.result()}
    except (Exception, asyncio.CancelledError) as error:
        told = known(error) if isinstance(error, Exception) else PerdureError("the node ended before it was done")
        last, status, code = {"error": told.to_json()}, told.http_status, told.code
    if (here := visit.current()) is not None:
        here.end(status, code)
    return last
