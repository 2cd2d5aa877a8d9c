"""Asks a provider, again and again where that helps, and hands on its bytes as they come."""

from __future__ import annotations

import asyncio
import email.utils
import io
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import aiohttp
from yarl import URL

from perdure.errors import PerdureError
from perdure.gateway import dialects
from perdure.gateway.limits import Limiter, Limits
from perdure.gateway.providers import ANTHROPIC_VERSION, Endpoint, Provider
from perdure.gateway.sizes import tokens_of
from perdure.model import Call

RETRIED = frozenset(
    {408, 409, 425, 429, 500, 502, 503, 504, 529}
)  # what the SDKs of OpenAI and Anthropic ask again, and 529: overloaded
FAILURES = RETRIED | {401, 402, 403}  # and what another provider, with another key, may do better
SENT_HEADERS = (
    "accept",
    "anthropic-beta",
    "anthropic-version",
    "content-type",
    "openai-beta",
    "openai-organization",
    "openai-project",
)  # of the guest's; never one with a key
KEPT_HEADERS = (
    "content-disposition",
    "content-type",
    "openai-processing-ms",
    "openai-version",
    "request-id",
    "retry-after",
    "retry-after-ms",
    "x-request-id",
)
KEPT_BEGINNINGS = ("anthropic-ratelimit-", "x-ratelimit-")
EVENTS = "text/event-stream"
CONNECT_S = 15.0
ANSWER_MAX = 64 << 20
LARGE = 1 << 20  # bytes; aiohttp wants to read larger bodies piece by piece
SECRET_LEAST = 12  # characters of a key; shorter ones are placeholders, and stand in any text
SHOWN = 200  # characters of where a provider wants to send us


@dataclass(frozen=True)
class Retry:
    """``attempts`` in all; the wait doubles from ``first_s`` to ``most_s`` (seconds), with jitter. A provider that
    wishes for up to ``wished_most_s`` gets them; who is to wait longer is told."""

    attempts: int = 6
    first_s: float = 0.5
    most_s: float = 20.0
    wished_most_s: float = 60.0

    def delay_s(self, attempt: int, wished_s: float | None) -> float | None:
        """Wait after the failed attempt number ``attempt``; None: it is not asked again."""
        if attempt >= self.attempts or (wished_s or 0.0) > self.wished_most_s:
            return None
        if wished_s is not None:
            return wished_s
        wait_s: float = min(self.first_s * 2 ** (attempt - 1), self.most_s)
        return wait_s * random.uniform(0.75, 1.25)


def wished_s(headers: Mapping[str, str], now: float) -> float | None:
    """How long an answer asks to wait (RFC 9110, 10.2.3: seconds or a date), with ``now`` in seconds since 1970; None:
    it does not say, or not so that it can be understood."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            found = float(headers.get(name, "")) * unit_s
        except ValueError:
            continue
        if math.isfinite(found) and found >= 0.0:
            return found
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now)
    except (ValueError, OverflowError):
        return None


class RefusedError(Exception):
    """The provider answered with an error, or could not be asked: what the asker is to see."""

    def __init__(
        self,
        reason: str,
        *,
        status: int = 0,
        code: str = "provider-failed",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        is_failure: bool = False,
    ) -> None:
        """status: of the provider; 0: it gave none. body: in the provider's words; none: ``reason`` is told.
        is_failure: it is nothing that the request has done: another provider may have an answer."""
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.http_status = status or 502
        self.code = code
        self.body = body
        self.headers = headers or {}
        self.is_failure = is_failure


class BrokenError(Exception):
    """The stream broke after its first byte was handed on: it cannot be asked again unnoticed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Head(NamedTuple):
    """How an answer begins."""

    status: int
    headers: dict[str, str]
    is_stream: bool  # of events, whose pieces come as they come; else there is one, with all of it
    provider: str


class Question(NamedTuple):
    """What is asked of a provider."""

    call: Call
    body: bytes
    dialect: str
    name: str  # the same whenever the same turn is asked (``Idempotency-Key``)


Started = Callable[[int, str, float], Awaitable[None]]


class Upstream:
    """The connections to all providers."""

    def __init__(self, retry: Retry, limits: Mapping[str, Limits]) -> None:
        """limits: by name of a provider."""
        self._retry = retry
        self._limiters = {name: Limiter(limit) for name, limit in limits.items()}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
        for limiter in self._limiters.values():
            limiter.close()

    def used(self, provider: str, name: str, tokens: int) -> None:
        """So many tokens was the question of this name, by which a minute's are counted."""
        if (limiter := self._limiters.get(provider)) is not None:
            limiter.used(name, tokens)

    def _turn(self, provider: str, question: Question) -> AbstractAsyncContextManager[float]:
        limiter, size = self._limiters.get(provider), tokens_of(len(question.body))
        return nullcontext(0.0) if limiter is None else limiter.turn(question.call.run_id, question.name, size)

    async def ask(self, provider: Provider, question: Question, *, started: Started) -> AsyncGenerator[Head | bytes]:
        """Yield how the answer begins, and its body's pieces.

        ``started(attempt, reason of the one before, seconds that it had to wait for its turn)`` is awaited right before
        each request. Raises ``RefusedError`` or ``BrokenError``.
        """
        after, attempt, renewals = "", 0, 0
        endpoint = await _endpoint(provider, question.dialect)
        while True:
            attempt += 1
            wait_s: float | None = None
            handed_on = False
            async with self._turn(provider.name, question) as waited_s:
                await started(attempt, after, waited_s)
                try:
                    async with self._request(endpoint, provider, question) as answer:
                        if answer.status < 300:
                            async for step in _steps(provider.name, answer, endpoint.key):
                                handed_on = True
                                yield step
                            return
                        after = _hiding(endpoint.key, f"{provider.name} answered {answer.status} {answer.reason}")
                        if answer.status < 400:
                            where = repr(_hiding(endpoint.key, answer.headers.get("location", ""))[:SHOWN])
                            told = f"{after}: to {where}, and nobody is sent anywhere with a key"
                            raise RefusedError(told, is_failure=True)
                        refusal = _refusal(after, answer, await _whole(answer), endpoint.key)
                        wait_s = wished_s(answer.headers, time.time())
                except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
                    told = f"{provider.name}: its certificate does not hold: {error}"
                    raise RefusedError(told, is_failure=True) from error
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    after = f"{provider.name}: {_why(error, provider.silence_s)}"
                    if handed_on:
                        raise BrokenError(after) from error
                    refusal = RefusedError(f"asked {attempt} times, the last time: {after}", is_failure=True)
                except ValueError as error:  # of its headers: nothing was sent
                    raise RefusedError(f"{provider.name} cannot be asked that: {error}") from error
            if refusal.status == 401 and not renewals:
                renewals = 1
                fresh = await _endpoint(provider, question.dialect, refused=endpoint.key)
                if fresh.headers != endpoint.headers:
                    endpoint = fresh
                    continue
            if refusal.status and refusal.status not in RETRIED:
                raise refusal
            delay_s = self._retry.delay_s(attempt - renewals, wait_s)
            if delay_s is None:
                raise refusal
            await asyncio.sleep(delay_s)
            endpoint = await _endpoint(provider, question.dialect)

    def _request(
        self, endpoint: Endpoint, provider: Provider, question: Question
    ) -> aiohttp.client._RequestContextManager:
        call = question.call
        headers = {name: call.headers[name] for name in SENT_HEADERS if name in call.headers}
        if question.body:
            headers.setdefault("content-type", "application/json")
        if question.dialect in dialects.ANTHROPIC:
            headers.setdefault("anthropic-version", ANTHROPIC_VERSION)
        headers |= {
            **endpoint.headers,
            "accept-encoding": "identity",  # the log keeps the bytes that the guest gets
            "idempotency-key": question.name,
        }
        return self._connected().request(
            call.method,
            URL(endpoint.base_url + call.path.removeprefix("/v1"), encoded=True),
            data=io.BytesIO(question.body) if len(question.body) > LARGE else question.body or None,
            headers=headers,
            allow_redirects=False,
            ssl=endpoint.tls or True,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=provider.silence_s),
        )

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                auto_decompress=False,
                headers={"User-Agent": "perdure"},
                cookie_jar=aiohttp.DummyCookieJar(),  # what one run is given is not sent in the name of another
            )
        return self._session


async def _endpoint(provider: Provider, dialect: str, *, refused: str = "") -> Endpoint:
    try:
        return await provider.endpoint(dialect, refused=refused)
    except PerdureError as error:
        message = f"{error.message} ({error.hint})" if error.hint else error.message
        raise RefusedError(message, status=error.http_status, code=error.code, is_failure=True) from error


async def _steps(provider: str, answer: aiohttp.ClientResponse, key: str) -> AsyncGenerator[Head | bytes]:
    """A good answer. Nothing of it is handed on before there is something of its body."""
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RefusedError(f"{provider} answered in the encoding {encoding!r}, which nobody asked for")
    head = Head(answer.status, _kept(answer, key), answer.content_type == EVENTS, provider)
    if not head.is_stream:
        whole = await _whole(answer)
        yield head
        yield whole
        return
    has_begun = False
    async for piece in answer.content.iter_any():
        if not has_begun:
            has_begun = True
            yield head
        yield piece
    if not has_begun:
        yield head


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > ANSWER_MAX:
            raise RefusedError(f"the provider's answer is over {ANSWER_MAX >> 20} MiB")
    return bytes(body)


def _kept(answer: aiohttp.ClientResponse, key: str) -> dict[str, str]:
    found = {name.lower(): value for name, value in answer.headers.items() if _hiding(key, value) == value}
    return {name: value for name, value in found.items() if name in KEPT_HEADERS or name.startswith(KEPT_BEGINNINGS)}


def _hiding(key: str, text: str) -> str:
    """Without the key that was shown, which some providers repeat: it would be in machines and logs."""
    return text.replace(key, "…") if len(key) >= SECRET_LEAST else text


def _refusal(reason: str, answer: aiohttp.ClientResponse, body: bytes, key: str) -> RefusedError:
    told = body.decode("latin-1")
    if answer.content_type != "application/json" or _hiding(key, told) != told:
        body = b""  # a proxy's page is no help to an SDK
    headers, is_failure = _kept(answer, key) if body else None, answer.status in FAILURES
    return RefusedError(reason, status=answer.status, body=body, headers=headers, is_failure=is_failure)


def _why(error: Exception, silence_s: float) -> str:
    if isinstance(error, aiohttp.SocketTimeoutError):
        return f"nothing came for {silence_s:g} s"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection broke before the answer was complete"
    return str(error) or type(error).__name__
