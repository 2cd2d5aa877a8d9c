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
