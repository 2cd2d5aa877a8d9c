"""Deliveries that leave the server: a real HTTP server and real commands; and the settings that name them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from perdure.errors import InvalidValue, Unavailable
from perdure.host.paths import Home
from perdure.runs.hook import Hook
from perdure.server import hooks
from perdure.server.hooks import HookSender, load, signature


@pytest.fixture
async def sender() -> AsyncIterator[HookSender]:
    made = HookSender()
    yield made
    await made.close()


async def test_a_delivery_is_signed_and_taken_by_a_2xx(sender: HookSender) -> None:
    seen, status = [], 500

    async def take(request: web.Request) -> web.Response:
        seen.append((dict(request.headers), await request.read()))
        return web.Response(status=status)

    app = web.Application()
    app.router.add_post("/hook", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    hook = Hook(url=f"http://{host}:{port}/hook", secret="s3cret")
    with pytest.raises(Unavailable, match="answered 500"):
        await sender.send(hook, "run:1:7", b'{"a":1}')
    status = 204
    await sender.send(hook, "run:1:7", b'{"a":1}')
    headers, body = seen[-1]
    at = int(headers["Perdure-Signature"].split(",")[0].removeprefix("t="))
    assert headers["Perdure-Signature"] == signature("s3cret", at, body) and headers["Perdure-Delivery"] == "run:1:7"
    await runner.cleanup()
    with pytest.raises(Unavailable):
        await sender.send(hook, "run:1:7", b"{}")


async def test_a_command_has_it_on_its_stdin(
    sender: HookSender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "told"
    await sender.send(
        Hook(command=["sh", "-c", f'cat > {place}; echo " $PERDURE_DELIVERY" >> {place}']), "run:1:7", b"{}"
    )
    assert place.read_text() == "{} run:1:7\n"
    with pytest.raises(Unavailable, match="exit status 3"):
        await sender.send(Hook(command=["sh", "-c", "exit 3"]), "id", b"{}")
    with pytest.raises(OSError):
        await sender.send(Hook(command=["/no/such/program"]), "id", b"{}")
    monkeypatch.setattr(hooks, "COMMAND_TIMEOUT_S", 0.05)
    with pytest.raises(Unavailable, match="did not end within"):
        await sender.send(Hook(command=["sleep", "60"]), "id", b"{}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hooks = 1", "hooks is not a table"),
        ("[hooks]\nport = 1", "unknown setting 'port'"),
        ("[hooks.a]\nurl = 'ftp://x'", r"\[hooks.a\]: not the url"),
        ("[hooks.a]", "either a url or a command"),
        ("[hooks.a]\nurl = 'http://x'\nstates = ['gone']", "a hook for no state: 'gone'"),
        ("[hooks.a]\nurl = 'http://x'\ntypo = 1", "typo"),
        ("[hooks.a]\nurl = 'http://x'\nsecret_env = 'NOWHERE'", "the environment has no NOWHERE"),
        ("[hooks.1]\nurl = 'http://x'", "no name of a hook"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, words: str) -> None:
    home = Home(tmp_path, tmp_path / "cache").make()
    (home.root / "settings.toml").write_text(text)
    with pytest.raises(InvalidValue, match=words):
        load(home, {})


def test_settings(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "cache").make()
    assert load(home, {}) == ({}, "")
    text = "[hooks]\nsecret_env = 'S'\n[hooks.a]\nurl = 'http://x'\nsecret = 'a'\n[hooks.b]\ncommand = ['notify']\n"
    (home.root / "settings.toml").write_text(text)
    found, secret = load(home, {"S": "s"})
    assert secret == "s"
    assert found == {"a": Hook(url="http://x", secret="a"), "b": Hook(command=["notify"])}
    assert found["a"].states == ["cancelled", "completed", "failed"]
