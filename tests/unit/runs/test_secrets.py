"""Secrets for tools: a program reaches one host with a secret that it never sees, by its run's door."""

from __future__ import annotations

import asyncio
import itertools
import json
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from perdure.agent import Context
from perdure.agent.calls import Lane
from perdure.agent.door import Door
from perdure.errors import InvalidValue, Unsupported
from perdure.gateway import toolsecrets
from perdure.gateway.toolsecrets import CUT, ToolSecrets, load
from perdure.host.paths import Home
from perdure.model import Call, RunState
from perdure.testing.guestdoor import AWAKE, GuestDoor, guest_door, waits
from perdure.testing.house import House
from perdure.testing.scripted import ScriptedProvider as Host

VALUE = "ghp_of-the-host"
DOOR = "/perdure/secret/github"


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    made = Host()
    await made.open()
    made.acts = [made.says({"login": "owl"})]
    yield made
    await made.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", tmp_path / "cache").make()


def secrets_of(home: Home, host: Host, more: str = 'value_env = "TOKEN"\nallow = ["main"]') -> ToolSecrets:
    (home.root / "settings.toml").write_text(f'[secrets.github]\nbase_url = "{host.url}"\n{more}\n')
    return load(home, {"TOKEN": VALUE})


@pytest.fixture
async def house(tmp_path: Path, home: Home, host: Host) -> AsyncIterator[House]:
    made = House(tmp_path, host.url)
    made.secrets = secrets_of(home, host)
    await made.up()
    yield made
    await made.down()
    await made.secrets.close()
    await made.machines.close()


@pytest.fixture
async def door(house: House) -> AsyncIterator[GuestDoor]:
    run_id = await house.start(waits, policy=AWAKE)
    await house.waits(run_id, "signal")
    async with guest_door(house, run_id) as made:
        yield made


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


async def test_what_is_asked_goes_to_its_host_with_the_secret_put_in(
    house: House, door: GuestDoor, host: Host, client: aiohttp.ClientSession
) -> None:
    sent = {"X-Of-Program": "1", "Authorization": "Bearer perdure-run-0", "Connection": "close, x-drop", "X-Drop": "1"}
    url = f"{door.url}{DOOR}/repos/a%2Fb/issues?state=open&u=a/b"
    async with client.patch(url, data=b'{"title": "\xc3\xbc"}', headers=sent) as answer:
        assert answer.status == 200 and await answer.json() == {"login": "owl"}
    assert host.paths == ["/v1/repos/a%2Fb/issues?state=open&u=a/b"] and host.bodies == [b'{"title": "\xc3\xbc"}']
    (headers,) = host.headers
    assert headers["authorization"] == f"Bearer {VALUE}" and headers["x-of-program"] == "1"
    assert "x-drop" not in headers and "perdure" not in str(headers) and headers["host"] in host.url
    (used,) = await house.entries(door._run_id, "secret.used")
    assert used.payload == {"secret": "github", "method": "PATCH", "path": "/repos/a%2Fb/issues"} and used.key is None
    assert VALUE not in json.dumps([entry.payload for entry in await house.entries(door._run_id)])


async def test_nothing_of_it_is_answered_from_the_log(
    house: House, door: GuestDoor, host: Host, client: aiohttp.ClientSession
) -> None:
    """What asks again after a restore asks again; what a tool does belongs in a step."""
    for number in range(2):
        door.ordinals = itertools.count()
        for _ in range(2):  # the same call once more is a node's whose connection broke
            async with client.get(f"{door.url}{DOOR}") as answer:
                assert answer.status == 200
            door.ordinals = itertools.count()
        assert len(host.paths) == number + 1
        run = house.engine._runs[door._run_id]
        epoch = run.record.epoch
        await house.kill_machine(door._run_id)
        # awaited before the loop goes on
        assert await run.until(lambda: run.record.epoch > epoch and run.state is RunState.WAITING, 10)  # noqa: B023
    assert host.paths == ["/v1", "/v1"] and len(await house.entries(door._run_id, "secret.used")) == 2


async def test_it_streams_and_is_held_awake_meanwhile(
    house: House, door: GuestDoor, host: Host, client: aiohttp.ClientSession
) -> None:
    host.acts = [host.streams([b"data: one\n\n", b"data: two\n\n"], hold_after=1)]
    async with client.get(f"{door.url}{DOOR}/events") as answer:
        assert await answer.content.readuntil(b"\n\n") == b"data: one\n\n"
        activity = house.engine._runs[door._run_id].activity
        assert activity.speaking == 1
        host.go.set()
        assert await answer.read() == b"data: two\n\n"
    async with asyncio.timeout(10):
        while activity.speaking:  # noqa: ASYNC110 - nobody is told of that
            await asyncio.sleep(0.01)


async def test_an_answer_that_breaks_off_is_no_answer(
    door: GuestDoor, host: Host, client: aiohttp.ClientSession
) -> None:
    host.acts = [host.streams([b'{"a": ', b"1}"], cut_after=1), host.breaks()]
    async with client.get(f"{door.url}{DOOR}/x") as answer:
        assert await answer.read() == b'{"a": ' + CUT
    async with client.get(f"{door.url}{DOOR}/x") as answer:
        told = await answer.json()
        assert answer.status == 502 and "secret github: its host cannot be asked" in told["error"]["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/../admin",
        "/a/../../b",
        "/%2e%2e/admin",
        "/a/%2E%2E%2Fb",
        "/%252e%252e/b",
        "/./a",
        "//evil.example.org/x",
        "/http://evil.example.org/",
        "/a\\..\\b",
        "/a%5c..%5cb",
    ],
)
async def test_no_path_leads_elsewhere(house: House, door: GuestDoor, host: Host, path: str) -> None:
    port = int(door.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)  # a client would tidy the path up
    writer.write(f"GET {DOOR}{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    told = await reader.read()
    writer.close()
    assert told.startswith(b"HTTP/1.1 400 ") and b"not a path" in told and not host.paths
    assert not await house.entries(door._run_id, "secret.used")


@pytest.mark.parametrize(
    ("path", "status"),
    [("/perdure/secret/gitlab/x", 404), ("/perdure/secret/", 404), ("/perdure/secret/github@evil.org/x", 404)],
)
async def test_what_is_no_secret_is_none(
    door: GuestDoor, host: Host, client: aiohttp.ClientSession, path: str, status: int
) -> None:
    async with client.get(door.url + path) as answer:
        assert answer.status == status and (await answer.json())["error"]["code"] == "not-found"
    assert not host.paths


async def test_who_may_not_is_refused(house: House, home: Home, host: Host, client: aiohttp.ClientSession) -> None:
    run_id = await house.start(waits, policy=AWAKE, function="other")
    await house.waits(run_id, "signal")
    async with guest_door(house, run_id) as door, client.get(f"{door.url}{DOOR}/x") as answer:
        assert answer.status == 403 and "other may not use the secret 'github'" in await answer.text()
    assert not host.paths


async def test_nobody_is_sent_elsewhere_with_it(door: GuestDoor, host: Host, client: aiohttp.ClientSession) -> None:
    for where, told in [
        ("https://evil.example.org/x", "https://evil.example.org/x"),
        (f"{host.url}/b?c=1", f"{DOOR}/b?c=1"),
        ("/v1/c", f"{DOOR}/c"),
        ("d", f"{DOOR}/a/d"),
        ("/elsewhere", "/elsewhere"),
    ]:
        host.acts = [host.sends(b"", None, status=302, Location=where)]
        async with client.get(f"{door.url}{DOOR}/a/b", allow_redirects=False) as answer:
            assert (answer.status, answer.headers["location"]) == (302, told)
    assert len(host.paths) == 5


async def test_headers_that_repeat_it_are_left_out(door: GuestDoor, host: Host, client: aiohttp.ClientSession) -> None:
    host.acts = [host.sends(b"{}", "application/json", **{"X-Echo": f"Bearer {VALUE}", "X-Other": "1"})]
    async with client.get(f"{door.url}{DOOR}/x") as answer:
        assert "x-echo" not in answer.headers and answer.headers["x-other"] == "1"


async def test_headers_of_one_name_are_one_list(door: GuestDoor, host: Host, client: aiohttp.ClientSession) -> None:
    async def act(request: web.Request) -> web.StreamResponse:
        response = web.Response(headers={"Link": "<a>", "Set-Cookie": "c=d"})
        response.headers.add("Link", "<b>")
        return response

    host.acts = [act]
    async with client.get(f"{door.url}{DOOR}/user") as answer:
        assert answer.headers["link"] == "<a>, <b>" and answer.headers["set-cookie"] == "c=d"


async def test_what_nobody_hears_is_broken_off(
    house: House, door: GuestDoor, host: Host, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that come for ever, of a program that has left or whose run has ended."""
    monkeypatch.setattr(toolsecrets, "KEEP_S", 0.1)
    host.acts = [host.streams([b"data: one\n\n", b"data: two\n\n"], hold_after=1)]
    async with client.get(f"{door.url}{DOOR}/events") as answer:
        assert await answer.content.readuntil(b"\n\n") == b"data: one\n\n"
        assert not host.left.is_set()
    await asyncio.wait_for(host.left.wait(), 10)


async def test_of_what_is_answered_only_so_much_is_kept(
    house: House, door: GuestDoor, host: Host, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolsecrets, "KEPT_ALL_MAX", 1000)
    host.acts = [host.sends(b"x" * 400, "text/plain")]
    for _ in range(5):
        async with client.get(f"{door.url}{DOOR}/x") as answer:
            assert await answer.read() == b"x" * 400
    epoch, secrets = house.engine._runs[door._run_id].record.epoch, house.secrets
    assert secrets is not None
    calls = [Call(door._run_id, epoch, "auto", ordinal, "GET", f"{DOOR}/x", {}, b"") for ordinal in range(5)]
    assert [secrets.is_open(call) for call in calls] == [False, False, False, True, True]


async def test_a_command_is_asked_anew_where_its_value_is_refused(tmp_path: Path, home: Home, host: Host) -> None:
    count = tmp_path / "count"
    command = json.dumps(["sh", "-c", f"echo x >> {count}; echo value-$(wc -l < {count})"])
    made = House(tmp_path, host.url)
    more = f'value_command = {command}\nheader = "X-Token"\nallow = ["agent.py:*"]'
    made.secrets = secrets_of(home, host, more)
    await made.up()

    async def checks(request: web.Request) -> web.StreamResponse:
        return web.json_response({}, status=200 if request.headers["x-token"] == "value-2" else 401)

    host.acts = [checks]
    run_id = await made.start(waits, policy=AWAKE)
    await made.waits(run_id, "signal")
    async with guest_door(made, run_id) as door, aiohttp.ClientSession() as client:
        for asked in (2, 3):
            async with client.get(f"{door.url}{DOOR}/x") as answer:
                assert answer.status == 200 and len(host.paths) == asked
    await made.down()
    await made.secrets.close()
    await made.machines.close()


async def test_an_agent_asks_with_any_client(door: GuestDoor, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_DOOR", door.url.removeprefix("http://"))
    ctx = Context(door._run_id, Lane("main"), Door())
    assert ctx.secret("github").url == f"{door.url}{DOOR}" and repr(ctx.secret("github")) == "Secret('github')"

    def asks() -> Any:
        with urllib.request.urlopen(ctx.secret("github").url + "/user") as answer:
            return json.load(answer)

    assert await asyncio.to_thread(asks) == {"login": "owl"} and host.paths == ["/v1/user"]
    with pytest.raises(InvalidValue, match="no name of a secret"):
        ctx.secret("git/hub")
    monkeypatch.setenv("PERDURE_DOOR", "unix:/door")
    with pytest.raises(Unsupported, match="a Unix socket"):
        ctx.secret("github")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('base_url = "x"\nvalue_env = "TOKEN"\nallow = []', "base_url: 'x' is not a URL"),
        ('base_url = "https://a@b"\nvalue_env = "TOKEN"\nallow = []', "base_url: a base URL has neither"),
        ('base_url = "https://a"\nvalue_env = "TOKEN"', "allow is no list"),
        ('base_url = "https://a"\nallow = ["*"]', "has no value"),
        ('base_url = "https://a"\nvalue_env = "NONE"\nallow = ["*"]', "the environment has no NONE"),
        (
            'base_url = "https://a"\nvalue_env = "TOKEN"\nvalue_file = "x"\nallow = ["*"]',
            "has value_env and value_file",
        ),
        ('base_url = "https://a"\nvalue_env = "TOKEN"\nheader = "Host"\nallow = ["*"]', "header is 'host'"),
        ('base_url = "https://a"\nvalue = "x"\nallow = ["*"]', "unknown setting 'value'"),
    ],
)
def test_a_wrong_line_is_told(home: Home, text: str, told: str) -> None:
    (home.root / "settings.toml").write_text(f"[secrets.github]\n{text}\n")
    with pytest.raises(InvalidValue, match=told):
        load(home, {"TOKEN": VALUE})
