"""What each token may see and do, on a real fcrund over TCP; nothing here needs a machine."""

from __future__ import annotations

import json
import queue
import threading
import time

import pytest

from perdure.errors import NoRights, NotFound, PerdureError, Unavailable
from perdure.model import CallsEndpoint, ExecSpec, Fork, SandboxSpec, SandboxState
from perdure.node.access import MAY, RULES, Access
from perdure.node.tokens import Scope
from perdure.testing.owners import BOX, HERS, World, names
from perdure.testing.tinynodes import TINY

DEADLINE_S = 30.0


def test_over_tcp_nothing_is_for_strangers(world: World) -> None:
    """Every route there is, and what is none."""
    for route in (*RULES, "GET /v1/nothing", "GET /"):
        method, path = route.split()
        for token in (None, "", "x", world.bob[:-1], world.bob + "A", f"{world.bob[:19]}{world.ann[19:]}"):
            told = world.ask(method, path.format(ref="box", name="box"), token)
            assert (told.status, told.code) == (401, "unauthorized"), route


def test_who_may_only_read_wakes_nothing(world: World) -> None:
    for path in ("stat", "archive"):
        told = world.ask("GET", f"/v1/sandboxes/box/{path}?path=/etc", world.reader)
        assert (told.status, told.code) == (409, "conflict"), told
    status, out, said = world.fcrun(world.reader, "cp", "box:/etc/hostname", "-")
    assert (status, out) == (125, "") and "box sleeps" in said and "fcrun export box" in said
    assert world.client.get("box").state is SandboxState.SUSPENDED


@pytest.mark.parametrize("route", sorted(RULES))
def test_every_route_asks_for_its_scope(world: World, route: str) -> None:
    """What a scope may not do is refused before anything is looked at, and another's sandbox is not there."""
    method, path = route.split()
    access = RULES[route].access
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    upgrade |= {"Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    for scope, token in ((Scope.OWN, world.bob), (Scope.READ, world.reader)):
        if access not in MAY[scope]:
            told = world.ask(method, path.format(ref="hers", name="hers"), token, **upgrade)
            assert (told.status, told.code) == (403, "no-rights")
    if access in MAY[Scope.OWN] and "{ref}" in path:
        bodies = {"rename": {"name": "x"}, "exec": {"command": ["true"]}}
        body = json.dumps(bodies.get(path.rpartition("/")[2], {})).encode() if method == "POST" else None
        of_hers, of_box = world.of_hers.digest, world.of_box.digest
        for ref in (HERS, HERS[:5], "hers", BOX, "box", of_hers, of_hers[:20], of_box.removeprefix("sha256:")[:12]):
            told = world.ask(method, path.format(ref=ref) + "?path=/etc", world.bob, body, **upgrade)
            assert (told.status, told.code) == (404, "not-found"), ref
            assert BOX not in told.body.decode().replace(ref, "") and HERS not in told.body.decode().replace(ref, "")


def test_a_token_sees_its_own_only(tidy: World) -> None:
    ann, bob = tidy.reached_with(tidy.ann), tidy.reached_with(tidy.bob)
    assert names(ann) == {"hers"} and names(bob) == set()
    assert names(tidy.client) == names(tidy.reached_with(tidy.admin)) == names(tidy.reached_with(tidy.reader))
    assert {one.digest for one in ann.store.list()} == {tidy.of_hers.digest}
    assert bob.store.list() == [] and bob.store.tree() == []
    assert [node.name for node in ann.store.tree() if node.kind == "snapshot"] == [tidy.of_hers.digest]
    assert ann.system()["sandboxes"] == {"suspended": 1} and bob.system()["sandboxes"] == {}
    assert ann.get("hers").owner and not tidy.client.get("box").owner
    assert ann.store.inspect("hers")["named_by"] == ["hers"]
    for source in ("hers", HERS, tidy.of_hers.digest, tidy.of_hers.digest[7:15]):
        with pytest.raises(NotFound):
            bob.fork(source, [Fork()])
        with pytest.raises(NotFound):
            bob.resume("hers", snapshot=source)
    with pytest.raises(NotFound):
        bob.remove("hers", force=True)


def test_names_are_each_owners_own(tidy: World) -> None:
    """That a name is taken would tell of what is not there."""
    ann, bob = tidy.reached_with(tidy.ann), tidy.reached_with(tidy.bob)
    his = bob.create(SandboxSpec(image="tiny", command=["/bin/true"], name="hers"))
    assert bob.get("hers").id == his.id and ann.get("hers").id == HERS
    with pytest.raises(PerdureError, match="ambiguous"):
        tidy.client.get("hers")
    assert tidy.client.get(his.id).owner == bob.get("hers").owner
    local = tidy.client.create(SandboxSpec(image="tiny", command=["/bin/true"], name="hers"))
    assert tidy.client.get("hers").id == local.id  # those of nobody in particular come first
    assert bob.rename("hers", "box").name == "box" and tidy.client.get("box").id == BOX
    with pytest.raises(PerdureError, match="taken"):
        bob.create(SandboxSpec(image="tiny", command=["/bin/true"], name="box"))
    tidy.client.rename(his.id, "other")
    assert bob.get("other").id == his.id


def test_events_are_of_ones_own(tidy: World) -> None:
    began = time.time()
    bob = tidy.reached_with(tidy.bob)
    heard: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        try:
            for event in bob.events(since=began):
                heard.put(f"{event.kind} {event.details.get('name')}")
        except Unavailable:
            pass  # the node ended, after all tests

    threading.Thread(target=listen, daemon=True).start()
    tidy.client.create(SandboxSpec(image="tiny", command=["/bin/true"], name="local"))
    tidy.reached_with(tidy.ann).rename("hers", "hers2")
    tidy.reached_with(tidy.ann).rename("hers2", "hers")
    bob.create(SandboxSpec(image="tiny", command=["/bin/true"], name="his"))
    bob.remove("his")
    assert [heard.get(timeout=DEADLINE_S) for _ in range(2)] == ["sandbox.created his", "sandbox.removed his"]
    everything = [event.kind for event in tidy.client.events(follow=False, since=began)]
    assert everything.count("sandbox.renamed") == 2


def test_who_reads_changes_nothing(tidy: World) -> None:
    reader = tidy.reached_with(tidy.reader)
    assert reader.get("hers").id == HERS and reader.disk_use() and list(reader.logs("hers")) == []
    for act in (
        lambda: reader.create(TINY),
        lambda: reader.remove("hers"),
        lambda: reader.exec_detached("hers", ExecSpec(command=["true"])),
        lambda: reader.attach("hers"),
        lambda: reader.border.tokens(),
        lambda: reader.remove_image("tiny"),
        reader.shutdown,
    ):
        with pytest.raises(NoRights):
            act()


def test_where_calls_go_is_for_who_may_do_everything(tidy: World) -> None:
    """Else a guest's calls would reach what only the node can: its own socket, say."""
    calls = CallsEndpoint(
        url=f"unix:{tidy.home.socket('fcrund')}:/v1/system/shutdown", run_id="r", epoch=1, token="t0p"
    )
    spec = SandboxSpec(image="tiny", command=["/bin/true"], calls=calls)
    with pytest.raises(NoRights, match="calls"):
        tidy.reached_with(tidy.bob).create(spec)
    with pytest.raises(NoRights, match="calls"):
        tidy.reached_with(tidy.ann).resume("hers", calls=calls)
    made = tidy.reached_with(tidy.admin).create(spec)
    assert made.spec.calls is not None
    assert tidy.reached_with(tidy.reader).get(made.id).spec.calls is None  # there is a token in it
    assert "t0p" not in tidy.ask("GET", "/v1/sandboxes", tidy.reader).body.decode()


def test_classes_are_used() -> None:
    assert {rule.access for rule in RULES.values()} == set(Access)
