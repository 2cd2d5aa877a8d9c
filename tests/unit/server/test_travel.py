"""Forks, rewinds, trees and differences through the server's API and its client."""

from __future__ import annotations

from typing import Any

import aiohttp
import msgspec
import pytest

from perdure.errors import InvalidValue, NotFound
from perdure.model import FileChange, RunState
from perdure.runs.comparing import compared
from perdure.runs.record import Record, to_value
from perdure.testing.house import AGENT
from perdure.testing.machines import Ask
from perdure.testing.programs import Steps, approval
from perdure.testing.served import Served

RECORD = Record(state=RunState.COMPLETED, request=AGENT, released=True)
RIGHT = {"authorization": "Bearer right"}


def decision() -> Steps:
    verdict = yield approval("Publish?")
    yield Ask("complete", {"result": verdict.value["comment"]})


async def answered(served: Served, run_id: str, comment: str) -> Any:
    await served.house.reaches(run_id, RunState.SUSPENDED)
    await served.ask(lambda client: client.approve(run_id, approved=True, comment=comment))
    return await served.ask(lambda client: client.result(run_id, timeout_s=15))


async def test_forks_and_a_rewind_through_the_client(served: Served) -> None:
    run_id = await served.house.start(decision, name="first")
    at = (await served.house.reaches(run_id, RunState.SUSPENDED)).seq
    one, two = await served.ask(lambda client: client.fork("first", count=2, name="try"))
    assert (one.name, two.name) == ("try-1", "try-2")
    assert one.origin is not None and (one.origin.run_id, one.origin.seq) == (run_id, at)
    assert [await answered(served, fork.id, fork.name) for fork in (one, two)] == ["try-1", "try-2"]
    assert await answered(served, run_id, "mine") == "mine"
    info = await served.ask(lambda client: client.rewind("first", at))
    assert (info.branch, info.result) == (2, None)
    assert await answered(served, run_id, "again") == "again"

    tree = await served.ask(lambda client: client.tree("first"))
    assert (tree["id"], tree["name"], tree["state"], tree["origin"]) == (run_id, "first", "completed", None)
    assert [(b["branch"], b["fork_seq"], b["why"], b["current"]) for b in tree["branches"]] == [
        (1, 0, "", False),
        (2, at, "rewound", True),
    ]
    assert [(fork["id"], fork["origin"]) for fork in tree["forks"]] == [
        (fork.id, {"branch": 1, "seq": at}) for fork in (one, two)
    ]
    assert await served.ask(lambda client: client.trees()) == [tree]
    assert (await served.ask(lambda client: client.tree(one.id)))["forks"] == []


async def test_a_tree_has_children(served: Served) -> None:
    head = await served.house.context.create("parent", to_value(RECORD))
    await served.house.context.create("child", to_value(msgspec.structs.replace(RECORD, parent=head.run_id)))
    (tree,) = await served.ask(lambda client: client.trees())
    assert [(tree["id"], child["id"]) for child in tree["children"]] == [("parent", "child")]


async def test_the_tree_of_one_run_reads_its_family_alone(served: Served) -> None:
    context = served.house.context
    for name, parent in (("root", ""), ("kid", "root"), ("grandkid", "kid")):
        await context.create(name, to_value(msgspec.structs.replace(RECORD, parent=parent)))
    await context.create("strange", {"state": "of a newer version"})
    tree = await served.ask(lambda client: client.tree("root"))
    (kid,) = tree["children"]
    assert [grandkid["id"] for grandkid in kid["children"]] == ["grandkid"]
    assert (await served.ask(lambda client: client.tree("kid"))) == kid


async def test_where_logs_part(served: Served) -> None:
    run_id = await served.house.start(decision)
    at = (await served.house.reaches(run_id, RunState.SUSPENDED)).seq
    (fork,) = await served.ask(lambda client: client.fork(run_id))
    (deeper,) = await served.ask(lambda client: client.fork(fork.id, at=at + 1))
    found = await served.ask(lambda client: client.diff(run_id, deeper.id))
    assert found["parted"] == {"run_id": run_id, "branch": 1, "seq": at}
    assert (found["a"]["run_id"], found["b"]["run_id"], found["files"]) == (run_id, deeper.id, None)
    found = await served.ask(lambda client: client.diff(deeper.id, fork.id))
    assert found["parted"] == {"run_id": fork.id, "branch": 1, "seq": at + 1}
    await answered(served, run_id, "one")
    await served.ask(lambda client: client.rewind(run_id, at))
    found = await served.ask(lambda client: client.diff(f"{run_id}:1", run_id))
    assert found["parted"] == {"run_id": run_id, "branch": 1, "seq": at}
    assert (found["a"]["branch"], found["b"]["branch"]) == (1, 2)
    other = await served.house.start(decision)
    assert (await served.ask(lambda client: client.diff(run_id, other)))["parted"] is None


async def test_what_differs_in_files(served: Served) -> None:
    run_id = await served.house.start(decision)
    await served.house.reaches(run_id, RunState.SUSPENDED)
    (fork,) = await served.ask(lambda client: client.fork(run_id))
    await served.house.reaches(fork.id, RunState.SUSPENDED)
    sandboxes, sandbox = served.house.machines.sandboxes, served.house.sandbox
    sandboxes[sandbox(run_id)].files = {"/same": b"1", "/both": b"old", "/gone": b"123"}
    sandboxes[sandbox(fork.id)].files = {"/same": b"1", "/both": b"newer", "/new": b""}
    found = await served.ask(lambda client: client.diff(run_id, fork.id, files=True))
    assert found["files"] == [
        {"path": "/both", "change": "changed", "a_bytes": 3, "b_bytes": 5},
        {"path": "/gone", "change": "removed", "a_bytes": 3, "b_bytes": None},
        {"path": "/new", "change": "added", "a_bytes": None, "b_bytes": 0},
        {"path": "/same", "change": "same", "a_bytes": 1, "b_bytes": 1},
    ]
    assert await served.ask(lambda client: client.file(fork.id, "/both")) == b"newer"
    with pytest.raises(NotFound):
        await served.ask(lambda client: client.file(fork.id, "/etc/passwd"))
    with pytest.raises(InvalidValue, match="absolute"):
        await served.ask(lambda client: client.file(fork.id, "both"))
    await served.ask(lambda client: client.cancel(fork.id, force=True))
    await served.house.released(fork.id)
    found = await served.ask(lambda client: client.diff(run_id, fork.id, files=True))
    assert found["files"] is None
    assert "files are gone" in found["problem"]["message"]


def test_files_are_compared_over_one_image() -> None:
    def change(kind: str, path: str, digest: str = "", type: str = "file", size: int = 1) -> FileChange:
        return FileChange(kind=kind, path=path, digest=digest, type=type, size_bytes=size)

    a = [change("C", "/c", "1"), change("D", "/d"), change("D", "/dd"), change("C", "/etc", type="folder")]
    b = [change("C", "/cc", "2"), change("D", "/dd"), change("A", "/new", type="folder"), change("C", "/d", "3")]
    assert [(one["path"], one["change"]) for one in compared(a, b)] == [
        ("/c", "changed"),
        ("/cc", "changed"),
        ("/d", "added"),
        ("/new", "added"),
    ]
    assert [(one["path"], one["change"]) for one in compared(b, a)] == [
        ("/c", "changed"),
        ("/cc", "changed"),
        ("/d", "removed"),
        ("/new", "removed"),
    ]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/runs/RUN/fork", '{"at": "first"}', 400),
        ("POST", "/v1/runs/RUN/fork", '{"at": 9999}', 400),
        ("POST", "/v1/runs/RUN/fork", '{"count": 0}', 400),
        ("POST", "/v1/runs/RUN/fork", "[" * 100_000, 400),
        ("POST", "/v1/runs/nobody/fork", "{}", 404),
        ("POST", "/v1/runs/RUN/rewind", "{}", 400),
        ("POST", "/v1/runs/RUN/rewind", '{"to": -1}', 400),
        ("GET", "/v1/runs/nobody/tree", "", 404),
        ("GET", "/v1/diff", "", 400),
        ("GET", "/v1/diff?a=RUN&b=RUN:two", "", 400),
        ("GET", "/v1/diff?a=RUN&b=RUN:2", "", 404),
    ],
)
async def test_bad_requests(served: Served, method: str, path: str, body: str, status: int) -> None:
    run_id = await served.house.start(decision)
    await served.house.reaches(run_id, RunState.SUSPENDED)
    url = served.url + path.replace("RUN", run_id)
    async with aiohttp.ClientSession() as session, session.request(method, url, data=body, headers=RIGHT) as answer:
        told = await answer.json()
        assert (answer.status, bool(told["error"]["message"])) == (status, True), told
    assert len(await served.house.engine.runs()) == 1
