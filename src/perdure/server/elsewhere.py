"""Requests about runs that belong to another server: asked there, with its own token, and answered as it answers.

Nothing is acknowledged here: what the owner acknowledges is durable, and where it has died in the middle, its lease
says when that is certain. From then on it writes nothing any more, so whoever takes the run over knows what was done,
and is asked again. The other road, a durable box of requests that the owner empties, would need an answer to travel
back for each of them (what was wrong, who was first); this needs only the lease.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import msgspec
from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    Fingerprint,
    ServerFingerprintMismatch,
    TCPConnector,
    web,
)

from perdure.client import clear
from perdure.context.leases import Lease, Leases, Owner
from perdure.errors import InvalidValue, LeaseLost, NoRights, PerdureError, Unavailable, from_json
from perdure.model import FileChange, new_id
from perdure.server.sharing import PROTOCOL

PATIENCE_S = 60.0  # so long a request waits for a lost server's runs to be taken over
AGAIN_S = 0.1
LOOK_S = 0.5
CONNECT_S = 2.0
PATIENT = ClientTimeout(total=None, sock_connect=CONNECT_S)
QUIET_S = 20.0  # so long an answer that goes on may say nothing: its server has something to say every 5 s
MARK = "Perdure-Forwarded"
HERE = frozenset(("verify",))  # of what is posted: answered from the database, by any server
AT_OWNER = frozenset(("output", "file", "changes"))  # of what is asked for: it is at the run's machine
# Asked twice it is done once, or says so.
AGAIN = frozenset(("signal", "approve", "cancel", "checkpoint", "tags", "budget"))

Trust = Fingerprint | bool
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = logging.getLogger(__name__)


class Elsewhere:
    """``is_here``: whether a run is this server's, and taken up."""

    def __init__(self, leases: Leases, is_here: Callable[[str], bool]) -> None:
        self._leases = leases
        self._is_here = is_here
        self._session: ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def is_for_owner(self, request: web.Request) -> bool:
        """Whether this is a request that a run's owner answers."""
        part = request.path.rpartition("/")[2]
        if "ref" not in request.match_info or request.path.count("/") < 4:
            return False
        return part not in HERE if request.method == "POST" else part in AT_OWNER

    async def answer(self, run_id: str, request: web.Request, handler: Handler) -> web.StreamResponse:
        """From here, where the run is ours, or has ended; else from its owner."""
        if self._is_here(run_id):
            return await handler(request)
        part, body = request.path.rpartition("/")[2], await request.read()
        body = _with_id(body) if part == "signal" else body  # the same each time
        path = f"/v1/runs/{run_id}/{part}" + (f"?{request.query_string}" if request.query_string else "")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            owner = await self._leases.owner(run_id)
            if not owner.server or self._is_here(run_id):
                return await handler(request)
            if MARK not in request.headers and request.query.get("follow") == "1":
                if (relayed := await self._relayed(owner, request, path)) is not None:
                    return relayed
            elif MARK not in request.headers and (told := await self._asked(owner, request.method, path, body)):
                status, content_type, content = told
                return web.Response(body=content, status=status, headers={"Content-Type": content_type})
            if MARK in request.headers or time.monotonic() > deadline:
                raise LeaseLost(f"run {run_id} is being taken over by another server", hint="Ask again in a moment.")
            await asyncio.sleep(AGAIN_S)

    async def post(self, run_id: str, part: str, body: dict[str, Any]) -> None:
        """See ``runs.ports.OtherServers``."""
        await self._told(run_id, "POST", part, msgspec.json.encode(body))

    async def changes(self, run_id: str) -> list[FileChange]:
        """See ``runs.ports.OtherServers``."""
        return msgspec.json.decode(await self._told(run_id, "GET", "changes", b""), type=list[FileChange])

    async def _told(self, run_id: str, method: str, part: str, body: bytes) -> bytes:
        owner = await self._leases.owner(run_id)
        told = await self._asked(owner, method, f"/v1/runs/{run_id}/{part}", body)
        if told is None:
            raise LeaseLost(f"run {run_id} is being taken over by another server", hint="Ask again in a moment.")
        if told[0] >= 400:
            raise _error(told[2])
        return told[2]

    async def _asked(self, owner: Owner, method: str, path: str, body: bytes) -> tuple[int, str, bytes] | None:
        """None: that server is gone, or does not own the run any more; ask the one that does."""
        lease, part = owner.lease, path.partition("?")[0].rpartition("/")[2]
        if lease is None or lease.server == self._leases.server:
            return None
        trust = await _trust(lease)
        asking = asyncio.ensure_future(self._send(lease, trust, method, path, body))
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=LOOK_S)
                if not asking.done() and not await self._lives(lease):
                    break
            if not asking.done():
                raise ConnectionResetError("its lease is gone")
            told = asking.result()
        except ServerFingerprintMismatch as error:  # nothing was sent
            raise _stranger(lease) from error
        except ClientConnectorError:
            return None  # nothing was sent
        except (ClientError, OSError, TimeoutError) as error:
            log.info("server %s: %s: %r", lease.server, path, error)
            if method != "POST" or part in AGAIN or _has_key(body):
                return None
            hint = "`perdure show` says whether it was done; ask again if not."
            raise Unavailable(f"server {lease.server} went away in the middle of the request", hint=hint) from error
        finally:
            asking.cancel()
        is_lost = told[0] == LeaseLost.http_status and _error(told[2]).code == LeaseLost.code
        return None if is_lost else told

    async def _relayed(self, owner: Owner, request: web.Request, path: str) -> web.StreamResponse | None:
        """An answer that goes on, as it comes; None as of ``_asked``. Where that server goes away in the middle the
        answer breaks off, and whoever follows asks on from where it was."""
        if owner.lease is None or owner.lease.server == self._leases.server:
            return None
        trust = await _trust(owner.lease)
        response, quiet = web.StreamResponse(), ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=QUIET_S)
        try:
            async with self._request(owner.lease, trust, "GET", path, b"", quiet) as answer:
                if answer.status >= 400:
                    content = await answer.read()
                    if answer.status == LeaseLost.http_status and _error(content).code == LeaseLost.code:
                        return None
                    return web.Response(body=content, status=answer.status, content_type=answer.content_type)
                response.set_status(answer.status)
                response.content_type = answer.content_type
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
        except ServerFingerprintMismatch as error:  # nothing was sent
            raise _stranger(owner.lease) from error
        except (ClientError, OSError, TimeoutError) as error:
            if not response.prepared:
                return None
            log.info("server %s: %s: %r", owner.lease.server, path, error)
            if request.transport is not None:
                request.transport.abort()  # or half an answer would look like a whole one
            raise ConnectionResetError from error
        return response

    async def _send(self, lease: Lease, trust: Trust, method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        async with self._request(lease, trust, method, path, body) as answer:
            return answer.status, answer.content_type, await answer.read()

    def _request(
        self, lease: Lease, trust: Trust, method: str, path: str, body: bytes, timeout: ClientTimeout = PATIENT
    ) -> AbstractAsyncContextManager[ClientResponse]:
        if self._session is None:
            # as many as there are who follow what another server's runs print: nobody waits for them to end
            self._session = ClientSession(connector=TCPConnector(limit=0))
        headers = {"Authorization": f"Bearer {lease.facts['token']}", MARK: "1", "Content-Type": "application/json"}
        url = str(lease.facts["url"]) + path
        return self._session.request(method, url, data=body, headers=headers, timeout=timeout, ssl=trust)

    async def _lives(self, lease: Lease) -> bool:
        try:
            return any(other.server == lease.server for other in await self._leases.leases())
        except Unavailable:
            return True  # the database is away: nobody knows better


def _has_key(body: bytes) -> bool:
    """Whether what is asked for is done once for its key."""
    with suppress(msgspec.DecodeError):
        asked = msgspec.json.decode(body or b"null")
        return isinstance(asked, dict) and asked.get("key") is not None
    return False


async def _trust(lease: Lease) -> Trust:
    """Whom to believe that he is this server: who has the certificate that its lease names. NoRights: it would be asked
    in clear, over a network. Unavailable: it is another version's, and speaks otherwise."""
    if lease.facts.get("protocol") != PROTOCOL:
        what = f"server {lease.server} is perdure {lease.facts.get('version')}, and speaks another protocol"
        raise Unavailable(what, hint=f"Ask it itself: {lease.facts.get('url')}")
    url, fingerprint = str(lease.facts["url"]), str(lease.facts.get("fingerprint") or "")
    if url.startswith("https:"):
        return Fingerprint(bytes.fromhex(fingerprint)) if fingerprint else True
    try:
        await asyncio.to_thread(clear.check, url)
    except InvalidValue as error:
        hint = "Its token would be read on the way. Start it anew: it listens with TLS there ([servers] listen)."
        raise NoRights(f"server {lease.server} is at {url}, in clear: it is not asked", hint=hint) from error
    return True


def _stranger(lease: Lease) -> NoRights:
    hint = "Somebody else has that address, or stands in between. Start the server anew if its certificate was changed."
    message = f"{lease.facts['url']} is not server {lease.server}: its certificate is another one"
    return NoRights(message, hint=hint)


def _with_id(body: bytes) -> bytes:
    """A signal that may be sent twice has an id, so that it is taken once."""
    try:
        signal = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body
    if isinstance(signal, dict) and signal.get("id") is None:
        signal["id"] = f"forwarded.{new_id()}"
    return msgspec.json.encode(signal)


def _error(content: bytes) -> PerdureError:
    try:
        return from_json(msgspec.json.decode(content)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return Unavailable("another server gave an answer that is none")
