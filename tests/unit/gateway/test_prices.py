"""What turns cost, as their entries and their run's sum have it: through HTTP, with the unmodified SDKs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perdure.context.log import ContextLog
from perdure.errors import InvalidValue
from perdure.gateway.dialects.dialect import Usage
from perdure.gateway.gateway import Gateway
from perdure.gateway.prices import Price, Prices, load
from perdure.gateway.providers import Providers, RemoteProvider
from perdure.gateway.upstream import Retry
from perdure.host.paths import Home
from perdure.testing import speeches

from .conftest import RUN, Provider, ask, chat, providers_of, read

PRICES = Prices({"real-*": Price(3.0, 15.0, 0.3, 3.75)})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", tmp_path / "cache").make()


async def last(log: ContextLog) -> dict[str, Any]:
    payload: dict[str, Any] = (await log.read(RUN))[-1].payload
    return payload


SAID: list[tuple[str, Any, bool, float]] = [
    ("/v1/chat/completions", speeches.chat("by night"), False, (7 * 3.0 + 2 * 15.0) / 1e6),
    ("/v1/chat/completions", speeches.chat_events("by ", "night"), True, (3 * 3.0 + 2 * 15.0) / 1e6),
    ("/v1/responses", speeches.response("x"), False, (6 * 3.0 + 30 * 0.3 + 4 * 3.75 + 6 * 15.0) / 1e6),
    ("/v1/responses", speeches.response_events("x"), True, (6 * 3.0 + 30 * 0.3 + 4 * 3.75 + 6 * 15.0) / 1e6),
    ("/v1/messages", speeches.message("x"), False, (5 * 3.0 + 90 * 0.3 + 10 * 3.75 + 2 * 15.0) / 1e6),
    ("/v1/messages", speeches.message_events("x"), True, (5 * 3.0 + 90 * 0.3 + 10 * 3.75 + 33 * 15.0) / 1e6),
]


@pytest.mark.parametrize(("path", "said", "is_stream", "cost"), SAID)
async def test_a_turn_costs_what_its_tokens_do_and_the_same_again_nothing(
    log: ContextLog, provider: Provider, path: str, said: Any, is_stream: bool, cost: float
) -> None:
    provider.acts = [provider.streams(said) if is_stream else provider.says(said)]
    async with Gateway(log, providers_of(provider), prices=PRICES) as gateway:
        await read(await gateway.answer(ask(path, stream=is_stream), 1))
        assert (await last(log))["cost_usd"] == pytest.approx(cost) and "estimated" not in await last(log)
        once = (await log.head(RUN)).spent
        assert once.calls == 1 and once.cost_usd == pytest.approx(cost) and not once.unpriced
        await read(await gateway.answer(ask(path, stream=is_stream, epoch=2), 1))
    assert (await log.read(RUN))[-1].kind == "model.replayed" and (await log.head(RUN)).spent == once


async def test_nothing_is_said_where_no_price_is_known(gateway: Gateway, log: ContextLog, provider: Provider) -> None:
    provider.acts = [provider.says("by night")]
    await read(await gateway.answer(chat(), 1))
    assert "cost_usd" not in await last(log)
    spent = (await log.head(RUN)).spent
    assert (spent.tokens, spent.unpriced, spent.cost_usd) == (9, 1, 0.0)


async def test_tokens_that_nobody_told_are_estimated_and_said_to_be(log: ContextLog, provider: Provider) -> None:
    """As a stream of OpenAI's is that was not asked for its usage."""
    events = [event for event in speeches.chat_events(*["owls "] * 40) if b'"usage"' not in event]
    provider.acts = [provider.streams(events)]
    async with Gateway(log, providers_of(provider), prices=PRICES) as gateway:
        call = chat(stream=True)
        await read(await gateway.answer(call, 1))
    payload = await last(log)
    assert payload["estimated"] and payload["usage"]["output_tokens"] == 50
    assert payload["usage"]["input_tokens"] == -(-len(call.body) // 4) and payload["cost_usd"] > 0
    assert (await log.head(RUN)).spent.estimated == 1


async def test_what_else_a_provider_streams_tells_its_tokens_too(log: ContextLog, provider: Provider) -> None:
    chunks = [
        b'data: {"model": "real-model", "choices": [{"text": "owls"}]}\n\n',
        b'data: {"model": "real-model", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}\n\n',
        b"data: [DONE]\n\n",
    ]
    provider.acts = [provider.streams(chunks)]
    async with Gateway(log, providers_of(provider), prices=PRICES) as gateway:
        await read(await gateway.answer(ask("/v1/completions", stream=True), 1))
    assert (await last(log))["model"] == "real-model" and (await log.head(RUN)).spent.tokens == 9


async def test_what_broke_off_has_cost_what_it_said(log: ContextLog, provider: Provider) -> None:
    provider.acts = [provider.streams(speeches.message_events("by ", "night"), cut_after=9)]
    async with Gateway(log, providers_of(provider), prices=PRICES, retry=Retry(attempts=1)) as gateway:
        await read(await gateway.answer(ask("/v1/messages", stream=True), 1))
    payload = await last(log)
    assert payload["reason"] and payload["cost_usd"] == pytest.approx((5 * 3 + 90 * 0.3 + 10 * 3.75 + 15) / 1e6)
    assert (await log.head(RUN)).spent.calls == 1


async def test_a_refusal_is_a_call_that_costs_nothing(log: ContextLog, provider: Provider) -> None:
    provider.acts = [provider.refuses(400)]
    async with Gateway(log, providers_of(provider), prices=PRICES) as gateway:
        await read(await gateway.answer(chat(), 1))
    assert (await log.head(RUN)).spent.calls == 1 and (await log.head(RUN)).spent.tokens == 0


async def test_the_price_is_of_the_model_that_answered_by_whichever_name(log: ContextLog, provider: Provider) -> None:
    provider.acts = [provider.says({**speeches.chat("hi"), "model": "behind-another-name"})]
    remote = RemoteProvider("test", provider.url, model="default-model", kind="any")
    named = Prices({"mine-*": Price(1.0, 0.0, 1.0, 1.0)})
    async with Gateway(log, Providers({"test": remote}, "test"), prices=named) as gateway:
        await read(await gateway.answer(chat(model="mine-1"), 1))
    assert (await last(log))["cost_usd"] == pytest.approx(7e-6)


def test_prices_are_read_and_the_first_that_fits_counts(home: Home) -> None:
    (home.root / "settings.toml").write_text(
        '[prices."a-big-*"]\ninput = 3\noutput = 15.0\ncached = 0.5\n[prices."a-*"]\ninput = 1\noutput = 2\n'
    )
    prices = load(home)
    assert prices.of("a-big-1") == Price(3.0, 15.0, 0.5, 3.0) and prices.of("a-1") == Price(1.0, 2.0, 1.0, 1.0)
    assert prices.of("", "b", "a-2") == prices.of("a-1") and prices.of("b", "") is None
    million = Usage(input_tokens=1_000_000, output_tokens=100_000, cached_tokens=400_000, cache_written_tokens=100_000)
    assert Price(3.0, 15.0, 0.5, 4.0).of(million) == pytest.approx(0.5 * 3 + 0.4 * 0.5 + 0.1 * 4 + 1.5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[prices."a"]\ninput = 1', "output is missing"),
        ('[prices."a"]\ninput = -1\noutput = 1', "input is -1"),
        ('[prices."a"]\ninput = "1"\noutput = 1', "input is '1'"),
        ('[prices."a"]\ninput = 1\noutput = 1\nfee = 2', "unknown setting 'fee'"),
        ("[prices]\na = 1", "is not a table"),
    ],
)
def test_a_wrong_line_is_told(home: Home, text: str, told: str) -> None:
    (home.root / "settings.toml").write_text(text)
    with pytest.raises(InvalidValue, match=told):
        load(home)
