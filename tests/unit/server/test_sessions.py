"""Sessions through the server's API and its real client."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from perdure.client.server import ServerClient
from perdure.errors import Conflict, InvalidValue, LogConflict, NotFound
from perdure.testing.served import Served

RIGHT = {"authorization": "Bearer right"}
NAMES = ["a/b", "ö ü?&=#%2F", "..", "x" * 1024, '["a","b"]', "\u2028"]


def note(payload: Any = None, **fields: Any) -> dict[str, Any]:
    return {"kind": "note", "payload": payload, **fields}


@pytest.mark.parametrize("name", NAMES)
async def test_a_session_has_the_name_that_it_was_given(served: Served, name: str) -> None:
    def work(client: ServerClient) -> None:
        made = client.sessions.append(name, [note(1), note("x" * 5000, key="k")], tags={"of": "me=1"}, value={"v": 1})
        assert (made.name, made.seq, made.version, made.value, made.tags) == (name, 2, 2, {"v": 1}, {"of": "me=1"})
        assert client.sessions.get(name) == made
        assert [found.name for found in client.sessions.all({"of": "me=1"})] == [name]
        assert [entry.payload for entry in client.sessions.entries(name)] == [1, "x" * 5000]
        assert [entry.seq for entry in client.sessions.newest(name)] == [2, 1]
        assert [entry.seq for entry in client.sessions.newest(name, key="k", limit=5)] == [2]
        assert [entry.seq for entry in client.sessions.find(name, ["k", "other"])] == [2]
        assert client.sessions.fork(name, "copy", value=None).value is None
        assert client.sessions.keep(name, [2], expected_seq=2).seq == 1
        client.sessions.delete(name)
        with pytest.raises(NotFound, match="no such session"):
            client.sessions.get(name)
        assert [entry.payload for entry in client.sessions.entries("copy", kind="note")] == [1, "x" * 5000]
        assert client.runs() == [] and client.status()["runs"] == {}

    await served.ask(work)


async def test_a_long_one_is_read_page_by_page(served: Served) -> None:
    def work(client: ServerClient) -> None:
        client.sessions.append("a", [note(n, key=f"{n % 7}") for n in range(2500)], tags={})
        assert [entry.payload for entry in client.sessions.entries("a")] == list(range(2500))
        assert [entry.payload for entry in client.sessions.newest("a")] == list(range(2499, -1, -1))
        assert len(list(client.sessions.newest("a", limit=1500))) == 1500
        assert [entry.payload for entry in client.sessions.newest("a", before=3)] == [1, 0]
        assert len(client.sessions.find("a", ["0", "1"])) == 358 + 357 + (2500 % 7 > 1)
        for n in range(3):
            client.sessions.make(f"more{n}")
        assert [found.name for found in client.sessions.all()] == ["a", "more0", "more1", "more2"]

    await served.ask(work)


async def test_what_is_asked_wrongly_is_refused(served: Served) -> None:
    def work(client: ServerClient) -> None:
        for act in (
            lambda: client.sessions.append("none", [note()]),
            lambda: client.sessions.fork("none", "b"),
            lambda: client.sessions.keep("none", [], expected_seq=0),
            lambda: client.sessions.delete("none"),
            lambda: list(client.sessions.entries("none")),
            lambda: list(client.sessions.newest("none")),
        ):
            with pytest.raises(NotFound, match="no such session: 'none'"):
                act()
        client.sessions.append("a", [note()], tags={})
        with pytest.raises(LogConflict) as raised:
            client.sessions.append("a", [note()], expected_seq=0)
        assert raised.value.details["seq"] == 1
        with pytest.raises(Conflict, match="there is a session 'a' already"):
            client.sessions.fork("a", "a")
        for wrong in (object(), float("nan"), {1: {2}}):
            with pytest.raises(InvalidValue):
                client.sessions.append("a", [note(wrong)])
        with pytest.raises(InvalidValue, match="no kind"):
            client.sessions.append("a", [note(once=True)])
        with pytest.raises(InvalidValue, match="'=' in its name"):
            client.sessions.make("b", tags={"a=b": "c"})
        with pytest.raises(InvalidValue, match="tags"):
            client.sessions.make("b", tags={str(n): "x" for n in range(17)})
        assert client.sessions.get("a").seq == 1

    await served.ask(work)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "", {}, 400),
        ("POST", "", {"name": 1}, 400),
        ("POST", "", {"name": "a", "other": 1}, 400),
        ("POST", "/a/entries", {"entries": [{"payload": 1}]}, 400),
        ("POST", "/a/entries", {"entries": "x"}, 400),
        ("POST", "/a/find", {}, 400),
        ("POST", "/a/find", {"keys": ["k"] * 1001}, 400),
        ("POST", "/a/fork", {"name": ""}, 400),
        ("POST", "/a/fork", {"name": "b", "at": -1}, 400),
        ("POST", "/a/keep", {"seqs": [1]}, 400),
        ("POST", "/a/keep", {"seqs": [0], "expected_seq": 0}, 400),
        ("GET", "/a/entries?after=x", None, 400),
        ("GET", "/a/entries?limit=-1", None, 400),
        ("GET", "/b", None, 404),
        ("DELETE", "/b", None, 404),
    ],
)
async def test_bad_requests(served: Served, method: str, path: str, body: Any, status: int) -> None:
    await served.ask(lambda client: client.sessions.make("a"))
    async with aiohttp.ClientSession() as http:
        url = f"{served.url}/v1/sessions{path}"
        async with http.request(method, url, json=body, headers=RIGHT) as answer:
            assert answer.status == status, await answer.text()
            assert json.loads(await answer.read())["error"]["code"] in ("invalid-value", "not-found")
        async with http.request(method, url, json=body) as answer:
            assert answer.status == 403
