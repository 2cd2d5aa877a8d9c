"""What went wrong with a request, as its answer."""

from __future__ import annotations

import logging

from aiohttp import web

from perdure.errors import InvalidValue, NotFound, PerdureError, StaleEpoch, Unsupported
from perdure.server.bodies import answer

log = logging.getLogger(__name__)

STALE = 410  # a stale epoch: its node ends the machine


def failure(error: PerdureError) -> web.Response:
    """The error's JSON with its status."""
    status = STALE if error.code == StaleEpoch.code else error.http_status
    return answer({"error": error.to_json()}, status)


def known(error: Exception) -> PerdureError:
    """The error as one of the tree; what is not expected is logged with its trace."""
    if isinstance(error, PerdureError):
        return error
    if isinstance(error, web.HTTPNotFound):
        return NotFound("no such path in the server's API")
    if isinstance(error, web.HTTPMethodNotAllowed):
        return Unsupported(f"this path does not know {error.method}")
    if isinstance(error, web.HTTPException):
        return InvalidValue(error.reason)
    log.error("internal error", exc_info=error)
    return PerdureError(f"internal error: {error!r}", hint="The server's log has the trace.")
