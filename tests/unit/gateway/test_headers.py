"""What of a request's head goes to a provider, and what does not."""

from __future__ import annotations

import json

import pytest

from perdure.context.log import ContextLog
from perdure.gateway.gateway import Gateway
from perdure.gateway.providers import Providers, RemoteProvider

from .conftest import RUN, Provider, ask, chat, read

pytestmark = pytest.mark.timeout(30)


async def test_no_cookie_of_one_run_is_sent_for_another(provider: Provider, log: ContextLog) -> None:
    provider.acts = [provider.sends(b'{"choices": [{}]}', "application/json", **{"set-cookie": "session=of-one"})]
    named = RemoteProvider("test", provider.url.replace("127.0.0.1", "localhost"))  # addresses have no cookies
    async with Gateway(log, Providers({"test": named}, "test")) as gateway:
        for ordinal in (1, 2):
            assert (await gateway.answer(chat(ordinal), 1)).status == 200
    assert ["cookie" in headers for headers in provider.headers] == [False, False]


@pytest.mark.parametrize("value", ["a\nauthorization: other", "a\r\nb"])
async def test_a_header_that_is_none_is_an_error_of_the_dialect(
    gateway: Gateway, provider: Provider, log: ContextLog, value: str
) -> None:
    """Asked again and again it would be no better."""
    provider.acts = [provider.says("hello")]
    answer = await gateway.answer(ask("/v1/messages", headers={"anthropic-beta": value}), 1)
    error = json.loads(await read(answer))
    assert answer.status == 502 and error["type"] == "error" and "cannot be asked that" in error["error"]["message"]
    assert not provider.asked and (await log.read(RUN))[-1].kind == "model.aborted"


@pytest.mark.parametrize("status", [401, 302])
async def test_a_refusal_that_repeats_the_key_is_worded_anew(provider: Provider, log: ContextLog, status: int) -> None:
    key = "sk-of-the-host-0"
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {key}", "type": "x"}}).encode()
    headers = {"x-request-id": f"Bearer {key}", "request-id": "1", "location": f"/?key={key}"}
    provider.acts = [provider.sends(body, "application/json", status=status, **headers)]
    remote = RemoteProvider("test", provider.url, key=key, kind="any")
    async with Gateway(log, Providers({"test": remote}, "test")) as gateway:
        answer = await gateway.answer(chat(), 1)
        told = await read(answer)
    assert provider.headers[0]["authorization"] == f"Bearer {key}" and f"answered {status}" in told.decode()
    assert key not in f"{told!r} {answer.headers} {await log.read(RUN)}"
