"""Asks a provider, again and again where that helps, and hands on its bytes as they come."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass

import aiohttp

from perdure.errors import PerdureError
from perdure.gateway.completions import error_body
from perdure.gateway.providers import Provider

RETRIED = frozenset(
    {408, 409, 425, 429, 500, 502, 503, 504, 529}
)  # what OpenAI's own SDKs ask again, and 529: overloaded
KEPT_HEADERS = ("content-type", "x-request-id", "openai-processing-ms", "openai-version", "retry-after")
CONNECT_S = 15.0
SILENCE_S = 600.0  # between two pieces; reasoning models are silent for minutes


@dataclass(frozen=True)
class Retry:
    """``attempts`` in all; the wait doubles from ``first_s`` to ``most_s`` (seconds), with jitter."""

    attempts: int = 6
    first_s: float = 0.5
    most_s: float = 20.0

    def delay_s(self, attempt: int, asked_for: str | None) -> float:
        """Wait after the failed attempt number ``attempt``; ``asked_for`` is the answer's Retry-After."""
        try:
            return min(float(asked_for or ""), 3 * self.most_s)
        except ValueError:
            pass  # none, or a date
        wait_s: float = min(self.first_s * 2 ** (attempt - 1), self.most_s)
        return wait_s * random.uniform(0.75, 1.25)


class RefusedError(Exception):
    """The provider answered with an error, or could not be asked: what the asker is to see."""

    def __init__(
        self, reason: str, *, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status  # of the provider; 0: it gave none
        self.http_status = status or 502
        self.body = body or error_body(reason, kind="server_error", code="provider-failed")
        self.headers = headers or {"content-type": "application/json"}


class BrokenError(Exception):
    """The stream broke after its first byte was handed on: it cannot be asked again unnoticed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


Head = tuple[int, dict[str, str]]


class Upstream:
    """The connections to all providers."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def ask(
        self,
        provider: Provider,
        body: bytes,
        *,
        name: str,
        stream: bool,
        started: Callable[[int, str], Awaitable[None]],
    ) -> AsyncIterator[Head | bytes]:
        """Yield (status, headers), then the body's pieces: as they come for a stream, else in one when it is whole.

        ``name`` is the same whenever the same turn is asked (``Idempotency-Key``). ``started(attempt, reason of the one
        before)`` is awaited right before each request. Raises ``RefusedError`` or ``BrokenError``.
        """
        after = ""
        for attempt in range(1, self._retry.attempts + 1):
            handed_on = False
            asked_for: str | None = None
            try:
                endpoint = await provider.endpoint()
            except PerdureError as error:
                message = f"{error.message} ({error.hint})" if error.hint else error.message
                body = error_body(message, kind="server_error", code=error.code)
                raise RefusedError(error.message, status=error.http_status, body=body) from error
            await started(attempt, after)
            headers = {
                **endpoint.headers,
                "content-type": "application/json",
                "accept": "text/event-stream" if stream else "application/json",
                "accept-encoding": "identity",  # the log keeps the bytes that the guest gets
                "idempotency-key": name,
            }
            try:
                url = endpoint.base_url + "/chat/completions"
                async with self._connected().post(url, data=body, headers=headers, allow_redirects=False) as answer:
                    if answer.status >= 300:
                        after = f"{provider.name} answered {answer.status} {answer.reason}"
                        asked_for = answer.headers.get("retry-after")
                        if answer.status not in RETRIED or attempt == self._retry.attempts:
                            raise _refusal(after, answer, await answer.read())
                    else:
                        if not stream:
                            whole = await answer.read()
                            yield answer.status, _kept(answer)
                            yield whole
                            return
                        yield answer.status, _kept(answer)
                        handed_on = True
                        async for piece in answer.content.iter_any():
                            yield piece
                        return
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                after = f"{provider.name}: {str(error) or type(error).__name__}"
                if handed_on:
                    raise BrokenError(after) from error
            if attempt < self._retry.attempts:
                await asyncio.sleep(self._retry.delay_s(attempt, asked_for))
        raise RefusedError(f"asked {self._retry.attempts} times, the last time: {after}", status=0)

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False)
        return self._session


def _kept(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: answer.headers[name] for name in KEPT_HEADERS if name in answer.headers}


def _refusal(reason: str, answer: aiohttp.ClientResponse, body: bytes) -> RefusedError:
    if answer.content_type != "application/json":  # a proxy's page is no help to an SDK
        body = b""
    if 300 <= answer.status < 400:
        return RefusedError(reason, status=0)
    return RefusedError(reason, status=answer.status, body=body, headers=_kept(answer) if body else None)
