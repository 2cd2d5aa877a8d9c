"""The part of the server's API that answers what machines ask.

==========================================  =====================================================================
POST /v1/calls                              from a node (docs/design/0001-contracts.md, 6); its own token
==========================================  =====================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from perdure.errors import InvalidValue, LogConflict, NoSpace, PerdureError, StaleEpoch, Unavailable
from perdure.gateway.dialects import PREFIX as MODELS
from perdure.gateway.gateway import refused
from perdure.model import Call
from perdure.runs.calls import PREFIX
from perdure.runs.engine import Engine
from perdure.server.failures import STALE, failure, known

log = logging.getLogger(__name__)

PATH = "/v1/calls"


class CallsApi:
    """Handlers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> Iterable[web.RouteDef]:
        return [web.post(PATH, self._call)]

    async def _call(self, request: web.Request) -> web.StreamResponse:
        call, token = await _read_call(request)
        try:
            answer = await self._engine.answer(call, token)
        except (Unavailable, LogConflict, NoSpace) as error:
            # Not the guest's concern: it is asked again until it can be answered, and nothing is lost.
            log.info("call %s of run %s again: %s", call.key, call.run_id, error.message)
            again = failure(Unavailable(error.message, hint=error.hint))
            again.headers["Perdure-Retry"] = "1"
            return again
        except Exception as error:
            if not call.path.startswith(MODELS):
                raise
            return await _refused(call, known(error))
        if call.path.startswith(PREFIX):  # no model's: it is there as a whole
            whole = b"".join([piece async for piece in answer.body])
            return web.Response(status=answer.status, headers=_end_to_end(answer.headers), body=whole)
        response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
        async with aclosing(answer.body) as body:  # type: ignore[type-var]  # an async generator, wherever it comes from
            await response.prepare(request)
            try:
                async for piece in body:
                    await response.write(piece)
            except (Unavailable, StaleEpoch) as error:
                # The machine was captured meanwhile, or the server ends: the rest will be asked for.
                log.info("call %s of run %s breaks off: %s", call.key, call.run_id, error.message)
                if request.transport is not None:
                    request.transport.abort()
                return response
        await response.write_eof()
        return response


async def _read_call(request: web.Request) -> tuple[Call, str]:
    """A node's request as a call, and its token (docs/design/0001-contracts.md, 6)."""
    given = request.headers
    try:
        headers = msgspec.json.decode(given.get("Perdure-Headers", "{}"), type=dict[str, str])
        call = Call(
            run_id=given["Perdure-Run"],
            epoch=int(given["Perdure-Epoch"]),
            lane=given["Perdure-Lane"],
            ordinal=int(given["Perdure-Ordinal"]),
            method=given["Perdure-Method"],
            path=given["Perdure-Path"],
            headers={name.lower(): value for name, value in headers.items()},
            body=await request.read(),
            offset=int(given.get("Perdure-Offset", "0")),
        )
        return call, given["Perdure-Token"]
    except (KeyError, ValueError, msgspec.MsgspecError) as error:
        raise InvalidValue(f"this is not a call: {error!r}", hint="Only nodes ask here.") from error


async def _refused(call: Call, error: PerdureError) -> web.Response:
    """As whoever's SDK asks can read it. Of a stale epoch its node reads the code, in every dialect."""
    is_stale = isinstance(error, StaleEpoch)
    answer = refused(replace(call, offset=0) if is_stale else call, error)
    whole = b"".join([piece async for piece in answer.body])
    status = STALE if is_stale else answer.status
    return web.Response(status=status, headers=_end_to_end(answer.headers), body=whole)


def _end_to_end(headers: Any) -> dict[str, str]:
    """Without the length: the body begins at the offset, and is framed anew."""
    skipped = ("content-length", "transfer-encoding", "connection")
    return {name: value for name, value in headers.items() if name.lower() not in skipped}
