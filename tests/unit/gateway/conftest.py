"""A gateway on a real log, and its provider, whose answers and faults each test scripts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure.context import sqlite
from perdure.context.log import ContextLog
from perdure.gateway.gateway import Gateway
from perdure.gateway.providers import Providers, RemoteProvider
from perdure.gateway.upstream import Retry
from perdure.model import Answer, Call
from perdure.testing.scripted import ScriptedProvider as Provider

__all__ = ["Provider"]
RUN = "0123456789ab"


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[ContextLog]:
    opened = await sqlite.open(tmp_path / "perdure.db")
    await opened.create(RUN, {})
    yield opened
    await opened.close()


def providers_of(provider: Provider, **fields: Any) -> Providers:
    remote = RemoteProvider("test", provider.url, key="sk-secret", model="default-model", kind="any", **fields)
    return Providers({"test": remote}, "test")


@pytest.fixture
async def gateway(log: ContextLog, provider: Provider) -> AsyncIterator[Gateway]:
    async with Gateway(log, providers_of(provider), retry=Retry(attempts=3, first_s=0.01, most_s=0.02)) as made:
        yield made


MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "any", "messages": MESSAGES},
    "/v1/responses": {"model": "any", "input": "hi"},
    "/v1/messages": {"model": "any", "max_tokens": 9, "messages": MESSAGES},
}


def ask(path: str, ordinal: int = 1, *, stream: bool = False, body: bytes | None = None, **fields: Any) -> Call:
    """A call of any dialect."""
    told = json.dumps({**BODIES.get(path, {}), **({"stream": True} if stream else {})}).encode()
    made: dict[str, Any] = {"epoch": 1, "method": "POST", "headers": {}, **fields}
    return Call(run_id=RUN, lane="main", ordinal=ordinal, path=path, body=told if body is None else body, **made)


def chat(ordinal: int = 1, *, epoch: int = 1, offset: int = 0, stream: bool = False, **request: Any) -> Call:
    body: dict[str, Any] = {"model": "any", "messages": [{"role": "user", "content": "hi"}], **request}
    if stream:
        body["stream"] = True
    return Call(
        run_id=RUN, epoch=epoch, lane="main", ordinal=ordinal, method="POST", path="/v1/chat/completions",
        headers={"authorization": "Bearer guest"}, body=json.dumps(body).encode(), offset=offset,
    )  # fmt: skip


async def read(answer: Answer) -> bytes:
    return b"".join([piece async for piece in answer.body])
