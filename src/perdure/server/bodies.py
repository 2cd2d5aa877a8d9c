"""Bodies of requests and answers of the server's API, as values."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from aiohttp import web

from perdure.errors import InvalidValue

Wanted = TypeVar("Wanted")


async def body(request: web.Request, kind: type[Wanted]) -> Wanted:
    """The request's JSON as a value of ``kind``. InvalidValue names the field."""
    data = await request.read()
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidValue(f"the body of {request.method} {request.path}: {error}") from error


def answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
