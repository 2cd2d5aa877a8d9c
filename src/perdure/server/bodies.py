"""Bodies of requests and answers of the server's API, as values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from perdure.errors import InvalidValue

Wanted = TypeVar("Wanted")

NDJSON = "application/x-ndjson"
KEEP_ALIVE_S = 5.0


async def body(request: web.Request, kind: type[Wanted], hint: str = "") -> Wanted:
    """The request's JSON as a value of ``kind``. InvalidValue names the field."""
    data = await request.read()
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except RecursionError:
        raise InvalidValue(f"the body of {request.method} {request.path} is nested too deeply", hint=hint) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidValue(f"the body of {request.method} {request.path}: {error}", hint=hint) from error


def answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def number(request: web.Request, name: str, default: int) -> int:
    """A number of the query. InvalidValue names it."""
    text = request.query.get(name)
    try:
        found = default if text is None else int(text)
    except ValueError:
        found = -1
    if found < 0:
        raise InvalidValue(f"{name} is {text!r}: not a number from 0 on")
    return found


@asynccontextmanager
async def kept_alive(response: web.StreamResponse) -> AsyncIterator[None]:
    """Write an empty line now and then. A reader (and what is between) sees that the server lives, and a signal that
    reached a reader just before it began to wait for bytes is acted on, at the latest, then."""

    async def beat() -> None:
        with suppress(ConnectionError):  # the reader left: its own write will say so
            while True:
                await asyncio.sleep(KEEP_ALIVE_S)
                await response.write(b"\n")

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        with suppress(asyncio.CancelledError):
            await beating  # no beat after the last entry
