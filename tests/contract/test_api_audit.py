"""The audit of a real fcrund: who did what, and how it ended; without a machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from perdure.client.node import NodeClient
from perdure.errors import Conflict
from perdure.model import SandboxSpec
from perdure.testing.outside import OutsideNode
from perdure.testing.ways import strict_node


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutsideNode]:
    with strict_node(tmp_path_factory.mktemp("bad")) as node:
        yield node


def test_the_audit_says_who_did_what(node: OutsideNode) -> None:
    began = time.time()
    token = node.token("own", "carl")
    carl = node.reached_with(token)
    spec = SandboxSpec(image="tiny", command=["/bin/true"], name="his", env={"KEY": "s3cr3t"})
    made = carl.create(spec)
    carl.list()
    status, _, _ = node.fcrun(token, "rm", "box")
    assert status == 125
    node.ask("GET", "/v1/sandboxes", "fcrun_000000000000_guess")
    carl.remove("his")
    node.client.border.remove_token("carl")
    entries = list(node.client.border.audit(since=began))
    by_carl = [entry for entry in entries if entry.who.get("name") == "carl"]
    assert [(one.method, one.route, one.phase, one.status) for one in by_carl] == [
        ("POST", "/v1/sandboxes", "done", 201),
        ("DELETE", "/v1/sandboxes/{ref}", "done", 404),
        ("DELETE", "/v1/sandboxes/{ref}", "done", 200),
    ]
    assert by_carl[-1].sandboxes == [made.id] == by_carl[-3].sandboxes and by_carl[-2].ref == "box"
    assert by_carl[-2].code == "not-found" and by_carl[-1].source.startswith("127.0.0.1:")
    assert {entry.who["token"] for entry in by_carl} == {token.split("_")[1]}
    strangers = [entry for entry in entries if not entry.who]  # those of the tests before may be told late
    assert ("/v1/sandboxes", 401, "unauthorized") in [(one.route, one.status, one.code) for one in strangers]
    local = [entry for entry in entries if "uid" in entry.who and entry.source == "unix"]
    assert [entry.route for entry in local][:2] == ["/v1/tokens", "/v1/tokens/{ref}"]
    assert all((entry.who["uid"], entry.who["pid"]) == (os.geteuid(), os.getpid()) for entry in local)
    kept = (node.home.root / "log" / "audit.jsonl").read_text()
    assert "s3cr3t" not in kept and token.split("_", 2)[2] not in kept and "guess" not in kept


def test_the_audit_tells_how_it_ended_also_of_what_streams(node: OutsideNode) -> None:
    """Its answer has begun, with 200, when it fails."""
    began = time.time()
    with pytest.raises(Conflict):
        NodeClient(node.home, progress=lambda *_: None).kill("box", signal="TERM")
    told = [(one.phase, one.status, one.code, one.ref) for one in node.client.border.audit(since=began)][:2]
    assert told == [("begun", 200, "", "box"), ("ended", 409, "conflict", "box")]


def test_the_audit_is_shown_and_followed(node: OutsideNode) -> None:
    local = {"FCRUN_HOST": f"unix://{node.home.socket('fcrund')}"}
    began = time.time()
    token = node.token("read", "dora")
    assert node.fcrun(token, "kill", "box")[0] == 125
    lines = node.fcrun("", "system", "audit", "--since", str(began), **local)[1].splitlines()
    assert " unix POST /v1/tokens 201" in lines[0] and "uid " in lines[0]
    assert f"token dora ({token.split('_')[1]})" in lines[1] and "403 no-rights" in lines[1]
    rows = [json.loads(line) for line in node.fcrun("", "system", "audit", "--format", "json", **local)[1].splitlines()]
    assert rows[-1]["route"] == "/v1/system/audit" and rows[-1]["phase"] == "begun"
    following = NodeClient(node.home).border.audit(since=time.time(), follow=True)
    assert next(following).route == "/v1/system/audit"
    node.client.border.remove_token("dora")
    assert any(entry.method == "DELETE" and entry.ref == "dora" for entry in following)
    status, _, said = node.fcrun("", "system", "audit", "--since", "soon", **local)
    assert status == 125 and "--since" in said


def test_a_flood_of_strangers_is_counted(node: OutsideNode) -> None:
    """It gets few lines, so that it rotates nothing away, and none of it is forgotten."""
    began = time.time()
    for _ in range(40):
        assert node.ask("GET", "/v1/images", "x").status == 401
    lines = told = 0
    for entry in node.client.border.audit(since=began, follow=True):
        if not entry.who:
            lines, told = lines + 1, told + entry.times
        if told == 40:
            break
    assert lines < 40
