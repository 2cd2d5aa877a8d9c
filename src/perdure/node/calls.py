"""Forwards what guests ask to their calls endpoint (docs/design/0001-contracts.md, 6), until it is answered."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Mapping

import aiohttp

from perdure.errors import PerdureError, StaleEpoch, Unavailable
from perdure.execution.guest.session import GuestCall
from perdure.model import CallsEndpoint

BACKOFF_S = (0.05, 3.0)  # first and longest pause between two tries
CONNECT_TIMEOUT_S = 10.0
CHUNK_BYTES = 1 << 16

# what belongs to one connection and not to the answer (RFC 9110, 7.6.1); guestd frames the body itself
_HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length")
)

_log = logging.getLogger(__name__)


class _TryAgainError(Exception):
    """The endpoint cannot answer now."""


class Forwarder:
    """One per node. The guest holds the request until its answer is complete, so nothing is kept here."""

    def __init__(self) -> None:
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    async def answer(self, endpoint: CallsEndpoint | None, call: GuestCall) -> None:
        """Carry the answer to the guest, from the offset that it has. Raises StaleEpoch."""
        if endpoint is None:
            await _refuse(
                call,
                Unavailable(
                    "this sandbox has no calls endpoint: nobody answers models, steps and waits here",
                    hint="Start it through `perdure run`.",
                ),
            )
            return
        reached, responded, pause_s = call.offset, False, BACKOFF_S[0]
        while True:
            try:
                async with self._ask(endpoint, call, reached) as answer:
                    await _check(answer)
                    if not responded:
                        await call.respond(answer.status, _end_to_end(answer.headers))
                        responded = True
                    async for data in answer.content.iter_any():
                        await call.write(data)
                        reached += len(data)
                        pause_s = BACKOFF_S[0]
                await call.end()
                return
            except (_TryAgainError, aiohttp.ClientError, OSError, TimeoutError) as error:
                _log.info("call %s/%s of %s again: %r", call.lane, call.ordinal, endpoint.run_id, error)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # not all calls of a node at the same moment
            pause_s = min(pause_s * 2, BACKOFF_S[1])

    def _ask(self, endpoint: CallsEndpoint, call: GuestCall, reached: int) -> aiohttp.client._RequestContextManager:
        session, url = self._session(endpoint.url)
        headers = {
            "Perdure-Run": endpoint.run_id,
            "Perdure-Epoch": str(endpoint.epoch),
            "Perdure-Token": endpoint.token,
            "Perdure-Lane": call.lane,
            "Perdure-Ordinal": str(call.ordinal),
            "Perdure-Method": call.method,
            "Perdure-Path": call.path,
            "Perdure-Offset": str(reached),
            "Perdure-Headers": json.dumps(dict(call.headers)),
            "Content-Type": "application/octet-stream",
        }
        return session.post(url, data=call.body, headers=headers)

    def _session(self, url: str) -> tuple[aiohttp.ClientSession, str]:
        """The session for an endpoint's address, and the URL to ask there."""
        socket_path = ""
        if url.startswith("unix:"):
            socket_path, _, path = url[5:].partition(":")
            url = f"http://localhost{path or '/v1/calls'}"
        session = self._sessions.get(socket_path)
        if session is None:
            connector = (
                aiohttp.UnixConnector(socket_path, limit=0) if socket_path else aiohttp.TCPConnector(limit=0)
            )  # no limit: a call may wait for days, and must not keep others from asking
            session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
            )
            self._sessions[socket_path] = session
        return session, url


async def _check(answer: aiohttp.ClientResponse) -> None:
    if answer.status == 503 and answer.headers.get("Perdure-Retry") == "1":
        raise _TryAgainError("the endpoint asks to be asked again")
    if answer.status == 410:
        body = await answer.read()
        try:
            error = json.loads(body)["error"]
        except (ValueError, KeyError, TypeError):
            error = {}
        if error.get("code") == StaleEpoch.code:
            raise StaleEpoch(str(error.get("message", "the epoch is stale")))
        raise _TryAgainError(f"status 410 and no reason: {body[:200]!r}")


def _end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}


async def _refuse(call: GuestCall, error: PerdureError) -> None:
    # with what the SDKs of OpenAI and of Anthropic look for in an error
    body = json.dumps({"type": "error", "error": {"type": "api_error", **error.to_json()}}).encode()
    await call.respond(error.http_status, {"content-type": "application/json"})
    await call.write(body[call.offset :])
    await call.end()
