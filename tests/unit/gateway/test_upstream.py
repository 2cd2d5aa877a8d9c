"""What providers do to who asks them, in every dialect."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import ipaddress
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from perdure.context.log import ContextLog
from perdure.errors import Cancelled
from perdure.gateway.gateway import Gateway
from perdure.gateway.providers import Providers, RemoteProvider, load
from perdure.gateway.upstream import Retry, wished_s
from perdure.host.paths import Home
from perdure.testing import speeches

from .conftest import BODIES, RUN, Provider, ask, chat, providers_of, read

pytestmark = pytest.mark.timeout(60)
each_path = pytest.mark.parametrize("path", BODIES)
EVENTS = {
    "/v1/chat/completions": speeches.chat_events("a", "b"),
    "/v1/responses": speeches.response_events("a", "b"),
    "/v1/messages": speeches.message_events("a", "b"),
}


def said(body: bytes) -> str:
    """The message of an error; its shape is the path's."""
    message = json.loads(body)["error"]["message"]
    assert isinstance(message, str)
    return message


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after": formatdate(NOW + 90, usegmt=True)}, 90.0),
        ({"retry-after": formatdate(NOW - 90, usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
    ],
)
def test_how_long_an_answer_asks_to_wait(headers: dict[str, str], expected: float | None) -> None:
    assert wished_s(headers, NOW) == expected


def test_the_wait_before_another_attempt() -> None:
    retry = Retry(attempts=3, first_s=1.0, most_s=2.0, wished_most_s=60.0)
    assert retry.delay_s(1, 5.0) == 5.0 and retry.delay_s(1, 0.0) == 0.0
    assert retry.delay_s(1, 61.0) is None and retry.delay_s(3, 1.0) is None
    for attempt, usual in ((1, 1.0), (2, 2.0)):
        wait_s = retry.delay_s(attempt, None)
        assert wait_s is not None and 0.75 * usual <= wait_s <= 1.25 * usual


@each_path
async def test_a_refusal_that_asks_to_wait_is_asked_again_then(
    gateway: Gateway, provider: Provider, log: ContextLog, path: str
) -> None:
    date = formatdate(time.time() - 5, usegmt=True)  # it has passed
    provider.acts = [
        provider.refuses(429, {"retry-after": "0"}),
        provider.refuses(529, {"retry-after": date}),
        provider.streams(EVENTS[path]),
    ]
    answer = await gateway.answer(ask(path, stream=True), 1)
    assert await read(answer) == b"".join(EVENTS[path])
    started = [entry.payload for entry in await log.read(RUN, kind="model.started")]
    assert [one.get("after", "")[:19] for one in started] == ["", "test answered 429 T", "test answered 529 "[:19]]


@each_path
async def test_who_is_to_wait_for_long_is_told(gateway: Gateway, provider: Provider, path: str) -> None:
    provider.acts = [provider.refuses(429, {"retry-after": "3600", "anthropic-ratelimit-tokens-limit": "7"})]
    answer = await gateway.answer(ask(path), 1)
    assert answer.status == 429 and len(provider.asked) == 1
    assert answer.headers["retry-after"] == "3600" and answer.headers["x-should-retry"] == "false"
    assert answer.headers["anthropic-ratelimit-tokens-limit"] == "7"
    assert (await gateway.answer(ask(path), 1)).headers == answer.headers


@each_path
async def test_a_redirect_is_not_followed_with_a_key(gateway: Gateway, provider: Provider, path: str) -> None:
    provider.acts = [provider.sends(b"", None, status=307, location="http://elsewhere/v1")]
    answer = await gateway.answer(ask(path), 1)
    assert answer.status == 502 and "'http://elsewhere/v1'" in said(await read(answer)) and len(provider.asked) == 1


@each_path
async def test_an_encoding_that_nobody_asked_for_is_an_error(gateway: Gateway, provider: Provider, path: str) -> None:
    zipped = provider.sends(gzip.compress(b"{}"), "application/json", **{"content-encoding": "gzip"})
    provider.acts = [zipped]
    answer = await gateway.answer(ask(path), 1)
    assert answer.status == 502 and "encoding 'gzip'" in said(await read(answer))
    assert provider.headers[0]["accept-encoding"] == "identity"


@each_path
@pytest.mark.parametrize("shown", [0, 1])
async def test_a_provider_that_falls_silent_is_given_up(
    provider: Provider, log: ContextLog, path: str, shown: int
) -> None:
    """Before anything came it is asked again, after that its program is told."""
    events = EVENTS[path]
    provider.acts = [provider.streams(events, hold_after=shown), provider.streams(events)]
    async with Gateway(log, providers_of(provider, silence_s=0.2), retry=Retry(first_s=0.01)) as gateway:
        body = await read(await gateway.answer(ask(path, stream=True), 1))
        if not shown:
            assert body == b"".join(events) and len(provider.asked) == 2
        else:
            assert body.startswith(events[0]) and b"nothing came for 0.2 s" in body and len(provider.asked) == 1
    kept = [entry.kind for entry in await log.read(RUN)][-1]
    assert kept == ("model.aborted" if shown else "model.committed")


@each_path
async def test_nobody_listens(log: ContextLog, path: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        nobody = Providers({"nobody": RemoteProvider("nobody", url, kind="any")}, "nobody")
        async with Gateway(log, nobody, retry=Retry(attempts=2, first_s=0.01)) as gateway:
            answer = await gateway.answer(ask(path), 1)
    assert answer.status == 502 and "asked 2 times" in said(await read(answer))


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed one for a host or an address, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    named = x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([named]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    (folder / "key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return folder / "ca.pem", folder / "key"


@asynccontextmanager
async def with_tls(provider: Provider, home: Home, name: str, settings: str) -> AsyncIterator[Providers]:
    """The provider with a certificate for a name, at 127.0.0.1."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate(home.root, name))
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", provider.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}/v1"
    (home.root / "settings.toml").write_text(f'[providers.safe]\nbase_url = "{url}"\nkind = "any"\n{settings}\n')
    try:
        yield load(home, {})
    finally:
        await runner.cleanup()


@each_path
@pytest.mark.parametrize(
    ("name", "settings", "status"),
    [
        ("127.0.0.1", 'ca_file = "ca.pem"', 200),
        ("other.example", 'ca_file = "ca.pem"', 502),
        ("127.0.0.1", "", 502),
    ],
)
async def test_a_certificate_that_does_not_hold_is_an_error_and_no_key_is_shown(
    provider: Provider, log: ContextLog, tmp_path: Path, path: str, name: str, settings: str, status: int
) -> None:
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    provider.acts = [provider.streams(EVENTS[path])]
    async with with_tls(provider, home, name, settings) as providers, Gateway(log, providers) as gateway:
        answer = await gateway.answer(ask(path, stream=True), 1)
        body = await read(answer)
    assert answer.status == status and len(provider.asked) == (status == 200)
    assert status == 200 or "safe: its certificate does not hold" in said(body)
    assert len(await log.read(RUN, kind="model.started")) == 1


async def test_what_travels_with_a_request(gateway: Gateway, provider: Provider) -> None:
    provider.acts = [provider.says(speeches.message("hi"))]
    travels = {"anthropic-beta": "owls", "openai-organization": "o", "accept": "application/json"}
    stays = {"x-api-key": "guest", "authorization": "Bearer guest", "cookie": "c", "user-agent": "sdk", "x-api": "y"}
    await read(await gateway.answer(ask("/v1/messages", headers={**travels, **stays}), 1))
    found = provider.headers[0]
    assert travels.items() <= found.items() and found["anthropic-version"] == "2023-06-01"
    assert found["x-api-key"] == "sk-secret" and found["content-type"] == "application/json"
    assert not {"authorization", "cookie", "x-api"} & found.keys() and found["user-agent"] == "perdure"
    await read(await gateway.answer(ask("/v1/messages", 2, headers={"anthropic-version": "2024"}), 1))
    assert provider.headers[1]["anthropic-version"] == "2024"


async def test_what_else_a_provider_has_is_recorded_and_answered_again(
    gateway: Gateway, provider: Provider, log: ContextLog
) -> None:
    embedding = b'{"object": "list", "data": [], "model": "e", "usage": {"prompt_tokens": 8, "total_tokens": 8}}'
    provider.acts = [provider.sends(embedding, "application/json"), provider.sends(b"\x00\xff", "audio/mpeg")]
    body = b'{"model":"e", "input": "owls"}'
    for _ in range(2):
        assert await read(await gateway.answer(ask("/v1/embeddings", body=body), 1)) == embedding
    form = ask("/v1/audio/speech?a=%20b", 2, body=b"--form", headers={"content-type": "multipart/form-data"})
    for _ in range(2):
        answer = await gateway.answer(form, 1)
        assert await read(answer) == b"\x00\xff" and answer.headers["content-type"] == "audio/mpeg"
    assert provider.bodies == [body, b"--form"] and provider.paths[1] == "/v1/audio/speech?a=%20b"
    assert provider.headers[1]["content-type"] == "multipart/form-data"
    intent, _, committed = await log.read(RUN, key="main/1")
    assert (intent.payload["dialect"], intent.payload["path"]) == ("openai-other", "/v1/embeddings")
    assert committed.payload["usage"]["input_tokens"] == 8


async def test_a_stream_of_something_else(gateway: Gateway, provider: Provider, log: ContextLog) -> None:
    events = [b'data: {"choices": [{"text": "a"}]}\n\n', b"data: [DONE]\n\n"]
    provider.acts = [provider.streams(events)]
    call = ask("/v1/completions", body=b'{"model": "m", "prompt": "hi", "stream": true}')
    for _ in range(2):
        assert await read(await gateway.answer(call, 1)) == b"".join(events)
    assert (await log.read(RUN))[-1].kind == "model.committed" and len(provider.asked) == 1


async def test_the_models_in_the_shape_of_who_asks(gateway: Gateway) -> None:
    call = ask("/v1/models?limit=20", method="GET", body=b"", headers={"anthropic-version": "1"})
    found = json.loads(await read(await gateway.answer(call, 1)))
    assert [model["id"] for model in found["data"]] == ["default-model"] and found["last_id"] == "default-model"


async def test_a_request_goes_to_who_speaks_its_dialect(log: ContextLog, provider: Provider) -> None:
    provider.acts = [provider.says(speeches.message("hi"))]
    named = {
        "one": RemoteProvider("one", "http://127.0.0.1:1/v1", kind="openai"),
        "two": RemoteProvider("two", provider.url.removesuffix("/v1"), "k", kind="anthropic"),
    }
    async with Gateway(log, Providers(named, "one", (("a*", "one"),))) as gateway:
        assert (await gateway.answer(ask("/v1/messages"), 1)).status == 200
        assert provider.paths == ["/v1/messages"]
    async with Gateway(log, Providers({"one": named["one"]}, "one")) as gateway:
        answer = await gateway.answer(ask("/v1/messages", 2), 1)
        error = json.loads(await read(answer))["error"]
        assert answer.status == 404 and error["type"] == "not_found_error" and "ANTHROPIC_API_KEY" in error["message"]
    assert not await log.read(RUN, key="main/2")


@each_path
async def test_a_run_that_ends_breaks_off_its_providers_stream(
    gateway: Gateway, provider: Provider, log: ContextLog, path: str
) -> None:
    """A machine that dies does not: somebody will want the rest."""
    provider.acts = [provider.streams(EVENTS[path], hold_after=1)]
    answer = await gateway.answer(ask(path, stream=True), 1)
    assert await anext(aiter(answer.body)) == EVENTS[path][0]
    await answer.body.aclose()  # type: ignore[attr-defined]  # it is an async generator
    assert gateway.is_in_flight(RUN) and not provider.left.is_set()
    await gateway.forget(RUN)
    async with asyncio.timeout(10):
        await provider.left.wait()
    assert [entry.kind for entry in await log.read(RUN)] == ["model.intent", "model.started"]


@pytest.fixture
async def spare() -> AsyncIterator[Provider]:
    made = Provider()
    await made.open()
    yield made
    await made.close()


def two(provider: Provider, spare: Provider, model: str = "") -> Providers:
    named = {
        "one": RemoteProvider("one", provider.url, "k1", kind="any"),
        "two": RemoteProvider("two", spare.url, "k2", "m2", kind="any"),
    }
    return Providers(named, "one", fallbacks={"one": [("two", model)]})


@each_path
@pytest.mark.parametrize("status", [401, 429, 500])
async def test_where_a_provider_fails_another_one_is_asked(
    provider: Provider, spare: Provider, log: ContextLog, path: str, status: int
) -> None:
    """It is one turn, in the provider's bytes; the request is the same, but for a model that has another name there."""
    provider.acts = [provider.refuses(status)]
    spare.acts = [spare.streams(EVENTS[path])]
    async with Gateway(log, two(provider, spare), retry=Retry(attempts=2, first_s=0.01)) as gateway:
        for _ in range(2):
            answer = await gateway.answer(ask(path, stream=True), 1)
            assert await read(answer) == b"".join(EVENTS[path])
    assert spare.bodies == provider.bodies[:1] and spare.headers[0]["idempotency-key"].endswith("main/1")
    kinds = [entry.kind for entry in await log.read(RUN)]
    attempts = len(provider.asked)
    assert kinds == ["model.intent", *["model.started"] * (attempts + 1), "model.committed"]
    asked, committed = (await log.read(RUN))[-2:]
    assert asked.payload["provider"] == committed.payload["provider"] == "two"
    assert asked.payload["after"].startswith(f"one answered {status}")


async def test_a_fallback_may_have_another_name_for_the_model(
    provider: Provider, spare: Provider, log: ContextLog
) -> None:
    provider.acts, spare.acts = [provider.breaks()], [spare.says("hi")]
    async with Gateway(log, two(provider, spare, "m3"), retry=Retry(attempts=1)) as gateway:
        assert (await gateway.answer(chat(), 1)).status == 200
    assert spare.asked == [{**provider.asked[0], "model": "m3"}]


async def test_what_the_request_is_to_blame_for_is_not_asked_elsewhere(
    provider: Provider, spare: Provider, log: ContextLog
) -> None:
    """Nor what was begun: that would be another answer."""
    provider.acts = [provider.refuses(400), provider.streams(EVENTS["/v1/messages"], cut_after=2)]
    async with Gateway(log, two(provider, spare)) as gateway:
        assert (await gateway.answer(ask("/v1/messages"), 1)).status == 400
        body = await read(await gateway.answer(ask("/v1/messages", 2, stream=True), 1))
    assert b"event: error" in body and not spare.asked


async def test_where_all_fail_the_last_one_is_told(provider: Provider, spare: Provider, log: ContextLog) -> None:
    provider.acts, spare.acts = [provider.refuses(500)], [spare.sends(b"", "text/html", status=503)]
    async with Gateway(log, two(provider, spare), retry=Retry(attempts=1)) as gateway:
        answer = await gateway.answer(chat(), 1)
        assert answer.status == 503 and said(await read(answer)).startswith("two answered 503")
    assert [entry.kind for entry in await log.read(RUN)][1:] == ["model.started", "model.started", "model.aborted"]


@each_path
@pytest.mark.parametrize("offset", [0, 5])
async def test_what_the_house_refuses_is_worded_as_the_api_does(gateway: Gateway, path: str, offset: int) -> None:
    answer = gateway.refused(ask(path, offset=offset), Cancelled("the run was cancelled", hint="clean up"))
    body = await read(answer)
    assert answer.status == (200 if offset else 409)
    told = json.loads(body.partition(b"data: ")[2] if offset else body)
    assert told["error"]["code"] == "cancelled" and told["error"]["message"] == "the run was cancelled (clean up)"
    assert ("type" in told) == (path == "/v1/messages" or (offset > 0 and path == "/v1/responses"))


async def test_an_answer_without_an_end(
    gateway: Gateway, provider: Provider, log: ContextLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("gateway", "upstream"):
        monkeypatch.setattr(f"perdure.gateway.{module}.ANSWER_MAX", 1 << 16)
    provider.acts = [provider.sends(b" " * (1 << 17), "application/json")]
    answer = await gateway.answer(chat(), 1)
    assert answer.status == 502 and "MiB" in said(await read(answer))

    async def talk(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(EVENTS[chat().path][0])

    provider.acts = [talk]
    body = await read(await gateway.answer(chat(2, stream=True), 1))
    assert b"MiB" in body[-300:] and len(body) < 1 << 18
    assert (await log.read(RUN))[-1].kind == "model.aborted"
