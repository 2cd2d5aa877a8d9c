"""The unmodified OpenAI SDK, as a program in a guest uses it: through HTTP, its calls counted on lane ``auto``."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import openai
import pytest
from aiohttp import web

from perdure.gateway.gateway import Gateway
from perdure.model import Call

from .conftest import RUN, Provider, events

pytestmark = pytest.mark.timeout(60)
MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    ordinals = itertools.count()

    async def handle(request: web.Request) -> web.StreamResponse:
        call = Call(
            run_id=RUN, epoch=1, lane="auto", ordinal=next(ordinals), method=request.method, path=request.path_qs,
            headers={name.lower(): value for name, value in request.headers.items()}, body=await request.read(),
        )  # fmt: skip
        answer = await gateway.answer(call, 1)
        response = web.StreamResponse(status=answer.status, headers=dict(answer.headers))
        await response.prepare(request)
        async for piece in answer.body:
            await response.write(piece)
        return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made
    await runner.cleanup()


async def test_a_whole_answer(client: openai.AsyncOpenAI, provider: Provider) -> None:
    provider.acts = [provider.says("hello")]
    answer = await client.chat.completions.create(model="any", messages=MESSAGES)
    assert answer.choices[0].message.content == "hello"
    assert answer.usage is not None and answer.usage.total_tokens == 9


async def test_a_stream(client: openai.AsyncOpenAI, provider: Provider) -> None:
    provider.acts = [provider.streams(events("a", "b", "c"), hold_after=1)]
    stream = await client.chat.completions.create(model="any", messages=MESSAGES, stream=True)
    said = []
    async for chunk in stream:
        said += [choice.delta.content for choice in chunk.choices if choice.delta.content]
        provider.go.set()
    assert said == ["a", "b", "c"]


async def test_its_errors_are_what_it_expects(client: openai.AsyncOpenAI, provider: Provider) -> None:
    provider.acts = [provider.refuses(401)]
    with pytest.raises(openai.AuthenticationError):
        await client.chat.completions.create(model="any", messages=MESSAGES)
    provider.acts = [provider.streams(events("a", "b"), cut_after=1)]
    stream = await client.chat.completions.create(model="any", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="test"):
        async for _ in stream:
            await asyncio.sleep(0)


async def test_the_list_of_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["default-model"]
