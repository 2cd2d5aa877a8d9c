"""The server's HTTP API through its real client and, for calls, as a node asks it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from perdure.client.server import ServerClient
from perdure.errors import AgentInvalid, Conflict, InvalidValue, NoRights, NotFound, ProtocolError
from perdure.model import RunState
from perdure.server import bodies
from perdure.testing.house import nothing
from perdure.testing.machines import CHAT, Ask
from perdure.testing.served import Served

RIGHT = {"authorization": "Bearer right"}
MESSAGES = "/v1/messages"
CHAT_BODY = b'{"messages": [{"role": "user", "content": "hello"}]}'


def waiting() -> Any:
    begun = yield Ask("begin", {})
    answer = yield Ask(CHAT, {"messages": [{"role": "user", "content": "hello"}]})
    verdict = yield Ask("wait", {"kind": "approval", "prompt": "Publish?"})
    yield Ask("complete", {"result": [begun.value["input"], answer.status, verdict.value["by"]]})


def start(client: ServerClient, **changes: Any) -> Any:
    asked = {"source": "...", "file": "agent.py", "function": "main", "image": "image", **changes}
    return client.start(**asked)


async def test_a_run_through_the_client(served: Served) -> None:
    served.house.machines.program = waiting
    info = await served.ask(lambda client: start(client, input=[1], key="once", name="first"))
    again = await served.ask(lambda client: start(client, input=[1], key="once"))
    assert again.id == info.id
    with pytest.raises(Conflict, match="with another input"):
        await served.ask(lambda client: start(client, input=[2], key="once"))
    tagged = await served.ask(lambda client: client.tag("first", {"a": "b=c", "d": "e"}, metadata=[None]))
    assert (tagged.tags, tagged.metadata) == ({"a": "b=c", "d": "e"}, [None])
    assert [run.id for run in await served.ask(lambda client: client.runs(tags=tagged.tags))] == [info.id]
    assert await served.ask(lambda client: client.runs(tags={"a": "c"})) == []
    await served.house.reaches(info.id, RunState.SUSPENDED)
    followed = asyncio.ensure_future(served.ask(lambda client: list(client.entries(info.id, follow=True))))
    wait = await served.ask(lambda client: client.approve("first", approved=True, by="ann"))
    assert wait["name"] == "Publish?"
    assert await served.ask(lambda client: client.result(info.id[:6], timeout_s=10)) == [[1], 200, "ann"]
    entries = await followed
    assert entries[-1].kind == "run.completed"
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert await served.ask(lambda client: list(client.entries(info.id, after=2, limit=2))) == entries[2:4]
    assert [run.id for run in await served.ask(lambda client: client.runs(states=["completed"]))] == [info.id]
    assert (await served.ask(lambda client: client.verify(info.id)))["entries"] == len(entries)
    status = await served.ask(lambda client: client.status())
    assert status["runs"] == {"completed": 1}
    intent = next(entry for entry in entries if entry.kind == "model.committed")
    assert b"answer to hello" in await served.ask(lambda client: client.blob(intent.payload["body"]))
    for again_by in ("bob", "eve"):
        with pytest.raises(Conflict, match="answered already: approved by ann"):
            await served.ask(lambda client, by=again_by: client.approve(info.id, by=by))


async def test_what_an_agent_says_counts_where_the_client_says_nothing(served: Served) -> None:
    served.house.machines.program = waiting
    source = "@agent(image='its own', version='3', idle_grace_s=60, retry={'any': {'attempts': 3}})\ndef main(ctx): ..."
    begun = await served.ask(lambda client: client.start(source=source, file="agent.py", function="main"))
    assert (begun.image, begun.policy["idle_grace_s"], begun.durability) == ("its own", 60, "snapshot")
    replayed = "@agent(durability='replay')\ndef main(ctx): ..."
    request = {"source": replayed, "file": "agent.py", "function": "main", "name": "by hand"}
    made = await served.ask(lambda client: client.schedules.create("daily", request, cron="0 9 * * *", paused=True))
    assert made["request"]["durability"] == "replay"
    for wrong in ("@agent(retry={'fire': {'attempts': 3}})\ndef main(ctx): ...", "def main(ctx:"):
        with pytest.raises(AgentInvalid, match=r"^agent\.py"):
            await served.ask(lambda client, source=wrong: start(client, source=source))


async def test_a_followed_log_is_kept_alive(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that waits for bytes hears something now and then, entries or not."""
    monkeypatch.setattr(bodies, "KEEP_ALIVE_S", 0.01)
    served.house.machines.program = waiting
    info = await served.ask(start)
    await served.house.reaches(info.id, RunState.SUSPENDED)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{served.url}/v1/runs/{info.id}/entries?follow=1", headers=RIGHT) as answer,
    ):
        empty = 0
        while empty < 3:
            empty += await asyncio.wait_for(answer.content.readline(), 10) == b"\n"
        await served.ask(lambda client: client.cancel(info.id, force=True))
        rest = [line for line in (await answer.content.read()).split(b"\n") if line]
    assert b"run.cancelled" in rest[-1]


async def test_a_reader_that_leaves_is_no_error(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a command line does that has seen the last entry: before the server has ended its answer."""
    left = asyncio.Event()

    @asynccontextmanager
    async def slow(response: web.StreamResponse) -> AsyncIterator[None]:
        yield
        await left.wait()
        request = response._req
        assert request is not None
        while request.transport is not None and not request.transport.is_closing():
            request.transport.close()

    monkeypatch.setattr("perdure.server.entries.kept_alive", slow)
    served.house.machines.program = nothing
    info = await served.ask(start)
    await served.house.ends(info.id)
    reader, writer = await asyncio.open_unix_connection(str(served.home.socket("perdured")))
    writer.write(f"GET /v1/runs/{info.id}/entries?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await asyncio.wait_for(reader.readuntil(b"run.failed"), 10)
    writer.close()
    left.set()
    assert await served.ask(lambda client: client.get(info.id))  # the server is fine
    await served.runner.cleanup()
    assert "internal error" not in caplog.text and "Traceback" not in caplog.text


async def test_signal_output_cancel(served: Served) -> None:
    def program() -> Any:
        yield Ask("wait", {"kind": "signal", "name": "go"})
        yield Ask("wait", {"kind": "signal", "name": "never"})

    served.house.machines.program = program
    info = await served.ask(start)
    await served.ask(lambda client: client.signal(info.id, "go", {"x": 1}))
    await served.house.reaches(info.id, RunState.WAITING, RunState.SUSPENDED)
    assert await served.ask(lambda client: client.output(info.id)) == b"output\n"
    info = await served.ask(lambda client: client.cancel(info.id, reason="enough"))
    assert info.ending is not None and info.ending["error"]["message"] == "enough"
    info = await served.ask(lambda client: client.get(info.id, wait_s=10))
    assert (info.state, info.error["message"] if info.error else "") == (RunState.CANCELLED, "enough")
    with pytest.raises(Conflict, match="has ended"):
        await served.ask(lambda client: client.signal(info.id, "go"))


async def test_errors_name_what_was_wrong(served: Served) -> None:
    for work, kind, words in (
        (lambda c: c.get("nobody"), NotFound, "no such run: nobody"),
        (lambda c: c.approve("nobody"), NotFound, "no such run"),
        (lambda c: start(c, image=""), InvalidValue, "names no image"),
        (lambda c: start(c, command=["x"]), InvalidValue, "either an agent or a command"),
        (lambda c: c.runs(states=["asleep"]), InvalidValue, "no such state"),
        (lambda c: c.blob("sha256:00"), NotFound, "no such blob"),
    ):
        with pytest.raises(kind, match=words):
            await served.ask(work)
    served.house.machines.program = nothing
    info = await served.ask(start)
    await served.house.ends(info.id)
    with pytest.raises(Conflict, match=r"run .* is failed: it does not wait for an approval"):
        await served.ask(lambda client: client.approve(info.id))


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/v1/runs", b"{nonsense", 400, "the body of POST /v1/runs"),
        ("POST", "/v1/runs", b"[]", 400, "object"),
        ("POST", "/v1/runs", b'{"memory_mib": "much"}', 400, "memory_mib"),
        ("GET", "/v1/runs?limit=x", b"", 400, "limit"),
        ("GET", "/v1/nothing", b"", 404, "no such path"),
        ("DELETE", "/v1/runs", b"", 501, "DELETE"),
        ("POST", "/v1/calls", b"{}", 400, "this is not a call"),
    ],
)
async def test_bad_requests(served: Served, method: str, path: str, body: bytes, status: int, words: str) -> None:
    headers = {"Authorization": "Bearer right"}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, served.url + path, data=body, headers=headers) as answer,
    ):
        assert answer.status == status
        error = (await answer.json())["error"]
    assert words in error["message"]
    assert set(error) == {"code", "message", "hint", "details"}


@pytest.mark.parametrize("token", ["", "wrong"])
async def test_tcp_asks_for_the_token(served: Served, token: str) -> None:
    right = ServerClient(served.home, url=served.url, token="right")
    assert (await asyncio.to_thread(right.status))["pid"]
    wrong = ServerClient(served.home, url=served.url, token=token)
    with pytest.raises(NoRights, match="no valid token"):
        await asyncio.to_thread(wrong.status)


async def test_a_call_with_a_large_head(served: Served) -> None:
    """guestd takes 64 KiB of it; JSON makes more of some bytes."""
    served.house.machines.program = waiting
    info = await served.ask(lambda client: start(client, policy={"idle_grace_s": 60}))
    await served.house.reaches(info.id, RunState.WAITING)
    headers = json.dumps({"x": "\u00e9" * 32000})
    path = "/perdure/v1/emit?" + "x" * 60000
    epoch = served.house.engine._runs[info.id].record.epoch
    status, _, body = await served.call(info.id, epoch, path, b'{"name": "a"}', headers=headers, lane="large")
    assert (status, body) == (200, b"{}")


async def test_calls_as_a_node_asks_them(served: Served) -> None:
    served.house.machines.program = waiting
    info = await served.ask(lambda client: start(client, policy={"idle_grace_s": 60}))
    await served.house.reaches(info.id, RunState.WAITING)
    status, _, whole = await served.call(info.id, 1, CHAT, CHAT_BODY)
    assert (status, "answer to hello" in whole.decode()) == (200, True)
    # asked again from an offset: the rest of the same bytes, from the log
    assert (await served.call(info.id, 1, CHAT, CHAT_BODY, offset="7"))[2] == whole[7:]
    status, _, body = await served.call(info.id, 1, "/perdure/v1/nothing", b"{}", ordinal="1")
    assert (status, json.loads(body)["error"]["code"]) == (404, "not-found")
    for epoch, headers in ((1, {"token": "guessed"}), (9, {})):
        status, _, body = await served.call(info.id, epoch, CHAT, CHAT_BODY, **headers)
        assert (status, json.loads(body)["error"]["code"]) == (410, "stale-epoch")
    assert (await served.call("nobody", 1, CHAT, CHAT_BODY))[0] == 410


@pytest.mark.parametrize("offset", ["0", "7"])
async def test_what_the_server_itself_refuses_is_in_the_words_of_who_asks(
    served: Served, offset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale epoch, which its node reads the code of; and what nobody foresaw."""
    served.house.machines.program = waiting
    info = await served.ask(lambda client: start(client, policy={"idle_grace_s": 60}))
    await served.house.reaches(info.id, RunState.WAITING)
    for path, fields in ((CHAT, {"code", "message", "param", "type"}), (MESSAGES, {"code", "message", "type"})):
        status, headers, body = await served.call(info.id, 9, path, CHAT_BODY, offset=offset)
        error = json.loads(body)["error"]
        assert (status, error["code"], set(error)) == (410, "stale-epoch", fields)
        assert headers["Content-Type"].startswith("application/json")
        assert ("type" in json.loads(body)) is (path == MESSAGES)

    async def breaks(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(served.house.engine, "answer", breaks)
    for path in (CHAT, MESSAGES):
        status, headers, body = await served.call(info.id, 1, path, CHAT_BODY, offset=offset)
        assert status == (500 if offset == "0" else 200)
        assert b"a bug" in body and (offset == "0" or b"\n\ndata: {" in body or b"\n\nevent: error\n" in body)


async def test_a_suspended_run_asks_its_node_to_ask_again(served: Served) -> None:
    served.house.machines.program = waiting
    info = await served.ask(start)
    await served.house.reaches(info.id, RunState.SUSPENDED)
    status, headers, _ = await served.call(info.id, 1, CHAT, CHAT_BODY)
    assert (status, headers["Perdure-Retry"]) == (503, "1")


async def test_a_damaged_log_is_told_in_the_stream(served: Served) -> None:
    served.house.machines.program = waiting
    info = await served.ask(lambda client: start(client, input="long " * 1000))
    await served.house.reaches(info.id, RunState.SUSPENDED)
    db_path = served.house.path

    def damage() -> None:
        import sqlite3

        db = sqlite3.connect(db_path)
        db.execute("DROP TRIGGER blobs_never_change")
        db.execute("UPDATE blobs SET zstd = 0")
        db.commit()
        db.close()

    await asyncio.to_thread(damage)
    with pytest.raises(ProtocolError, match="has other bytes"):
        await served.ask(lambda client: list(client.entries(info.id)))
    with pytest.raises(ProtocolError):
        await served.ask(lambda client: client.verify(info.id))
