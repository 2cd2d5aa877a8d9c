from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

import pytest

from perdure.context.log import ContextLog
from perdure.errors import InvalidValue, ProviderFailed
from perdure.gateway import keys
from perdure.gateway.gateway import Gateway
from perdure.gateway.keys import CommandKey, FileKey
from perdure.gateway.providers import RemoteProvider, load
from perdure.host.paths import Home

from .conftest import RUN, Provider, ask, chat, providers_of, read

pytestmark = pytest.mark.timeout(60)
COUNT = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.write_text(p.read_text() + 'x'); print(p.read_text())"


def counting(path: Path) -> CommandKey:
    """Its key is another one each time that it runs."""
    path.write_text("key-")
    return CommandKey([sys.executable, "-c", COUNT, str(path)], "provider test")


async def test_a_file_is_read_whenever_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = FileKey(path, "provider test")
    with pytest.raises(ProviderFailed, match=r"provider test: .*No such file") as raised:
        await key.read()
    assert str(tmp_path) not in raised.value.message  # a guest hears it
    path.write_text("one\n")
    assert await key.read() == "one"
    path.write_text("two")
    assert await key.read() == "two"
    for bad in (b"", b"\n\nthree", b"\xff\xfe", "\u00fc".encode(), b"a\x01b"):
        path.write_bytes(bad)
        with pytest.raises(ProviderFailed, match=r"first line|not text"):
            await key.read()


async def test_a_command_is_run_once_until_its_key_is_refused(tmp_path: Path) -> None:
    key = counting(tmp_path / "count")
    assert set(await asyncio.gather(*(key.read() for _ in range(5)))) == {"key-x"}
    assert set(await asyncio.gather(*(key.read(refused="key-x") for _ in range(5)))) == {"key-xx"}
    assert await key.read(refused="key-x") == "key-xx"  # who was told late that the old one is good no more
    assert await key.read() == "key-xx"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["/nothing/here"], "cannot be run"),
        ([sys.executable, "-c", "import sys; print('a secret', file=sys.stderr); sys.exit(3)"], "status 3"),
        ([sys.executable, "-c", "print()"], "has none in its first line"),
        ([sys.executable, "-c", "import time; time.sleep(99)"], "did not end in 0.2 s"),
    ],
)
async def test_a_command_that_has_no_key(
    command: list[str], message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if "0.2" in message:
        monkeypatch.setattr(keys, "COMMAND_S", 0.2)
    with caplog.at_level(logging.ERROR), pytest.raises(ProviderFailed, match=message) as raised:
        await CommandKey(command, "provider test").read()
    assert "secret" not in str(raised.value) and ("secret" in caplog.text) == ("status 3" in message)


async def test_a_refused_key_is_asked_for_again_once_a_call(
    provider: Provider, log: ContextLog, tmp_path: Path
) -> None:
    provider.acts = [provider.refuses(401), provider.says("hello")]
    async with Gateway(log, providers_of(provider, key_from=counting(tmp_path / "count"))) as gateway:
        answer = await gateway.answer(chat(), 1)
        assert answer.status == 200 and b"hello" in await read(answer)
        assert [headers["authorization"] for headers in provider.headers] == ["Bearer key-x", "Bearer key-xx"]
        provider.acts = [provider.refuses(401)]
        answer = await gateway.answer(chat(2), 1)
        assert answer.status == 401 and len(provider.asked) == 4


async def test_the_same_key_is_not_shown_twice(provider: Provider, log: ContextLog, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("same")
    provider.acts = [provider.refuses(401)]
    async with Gateway(log, providers_of(provider, key_from=FileKey(tmp_path / "key", "provider test"))) as gateway:
        assert (await gateway.answer(chat(), 1)).status == 401
    assert len(provider.asked) == 1


async def test_a_key_that_cannot_be_had_is_an_error_of_the_dialect(
    provider: Provider, log: ContextLog, tmp_path: Path
) -> None:
    async with Gateway(log, providers_of(provider, key_from=FileKey(tmp_path / "key", "provider test"))) as gateway:
        answer = await gateway.answer(ask("/v1/messages"), 1)
        error = json.loads(await read(answer))
    assert answer.status == 502 and error["type"] == "error" and "provider test" in error["error"]["message"]
    assert not provider.asked and (await log.read(RUN))[-1].kind == "model.aborted"


async def test_settings_say_where_a_key_comes_from(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    (home.root / "the.key").write_text("from-file")
    (home.root / "settings.toml").write_text(
        '[providers.a]\nbase_url = "http://a"\nkey_file = "the.key"\n'
        '[providers.b]\nbase_url = "http://b"\nkind = "anthropic"\nkey_command = "printf from-command"\nsilence_s = 5\n'
        '[providers.c]\nbase_url = "http://c/v1"\nkind = "any"\nkey_command = ["printf", "c"]\n'
    )
    found = load(home, {}).by_name
    assert (await found["a"].endpoint()).headers == {"authorization": "Bearer from-file"}
    b = found["b"]
    assert isinstance(b, RemoteProvider) and b.silence_s == 5.0
    endpoint = await b.endpoint("anthropic-messages")
    assert (endpoint.base_url, endpoint.headers) == ("http://b/v1", {"x-api-key": "from-command"})
    assert (await found["c"].endpoint("anthropic-other")).headers == {"x-api-key": "c"}
    assert (await found["c"].endpoint("openai-other")).headers == {"authorization": "Bearer c"}
    assert "from" not in repr(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kind = "cohere"', "kind is 'cohere'"),
        ('key = "a"\nkey_file = "b"', "has key and key_file"),
        ("key_command = []", "key_command is no command"),
        ("key_command = [3]", "key_command is no command"),
        ('key_command = "a \'b"', "key_command: No closing quotation"),
        ("silence_s = 0", "silence_s is 0"),
        ("silence_s = true", "silence_s is True"),
        ('ca_file = "none.pem"', "ca_file: "),
        ('fallbacks = "b"', "fallbacks is no list of providers"),
        ('fallbacks = ["b:m"]', "fallbacks: 'b' is no other provider"),
        ('fallbacks = ["a"]', "fallbacks: 'a' is no other provider"),
    ],
)
def test_wrong_settings_say_where(tmp_path: Path, text: str, message: str) -> None:
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    (home.root / "settings.toml").write_text(f'[providers.a]\nbase_url = "http://a"\n{text}\n')
    with pytest.raises(InvalidValue, match=r"\[providers.a\].*" + message) as raised:
        load(home, {})
    assert raised.value.hint
