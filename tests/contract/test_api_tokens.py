"""Tokens of a real fcrund: made, listed, renewed, removed, kept; nothing here needs a machine."""

from __future__ import annotations

import json
import queue
import stat
import threading
from pathlib import Path

import pytest

from perdure.errors import PerdureError, Unauthorized, Unavailable
from perdure.host.paths import Home
from perdure.testing.outside import outside_node
from perdure.testing.owners import World, names
from perdure.testing.tinynodes import TINY

DEADLINE_S = 30.0


def test_tokens_are_kept_hashed(world: World) -> None:
    path = world.home.root / "tokens.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kept = path.read_text()
    for token in (world.ann, world.bob, world.reader, world.admin):
        assert token.split("_", 2)[2] not in kept and token.split("_")[1] in kept
    assert "sha256" in kept and "SECRET" not in str(world.client.border.tokens())


def test_tokens_are_made_listed_and_removed(world: World) -> None:
    def fcrun(*argv: str) -> tuple[int, str, str]:
        return world.fcrun("", *argv, FCRUN_HOST=f"unix://{world.home.socket('fcrund')}")

    status, out, err = fcrun("token", "create", "--name", "ci", "--scope", "read", "--expires", "30d")
    assert (status, err) == (0, "")
    token = out.strip()
    assert names(world.reached_with(token)) >= {"box", "hers"}
    rows = [line.split() for line in fcrun("token", "ls")[1].splitlines()]
    assert rows[0][:4] == ["TOKEN", "ID", "NAME", "SCOPE"]
    assert [token.split("_")[1], "ci", "read"] in [row[:3] for row in rows] and rows[1][-3:] == ["in", "4", "weeks"]
    for argv, word in (
        (("create", "--name", "ci"), "already"),
        (("create", "--name", "a/b"), "invalid token name"),
        (("create", "--expires", "soon"), "--expires"),
        (("create", "--expires", "0s"), "expire"),
        (("create", "--scope", "most"), "--scope"),
        (("rm", "nope"), "no such token"),
    ):
        status, _, said = fcrun("token", *argv)
        assert status == 125 and word in said, argv
    assert fcrun("token", "rm", "ci") == (0, "ci\n", "")
    with pytest.raises(Unauthorized):
        world.reached_with(token).list()
    made = json.loads(fcrun("token", "create", "--format", "json")[1])
    assert made["scope"] == "own" and made["name"] == f"token-{made['id']}" and made["token"].startswith("fcrun_")
    assert world.fcrun(world.admin, "token", "rm", made["id"])[0] == 0  # also from elsewhere, with scope all
    assert made["id"] not in fcrun("token", "ls", "-q")[1]


def test_a_token_expires(world: World) -> None:
    token = world.token(expires_s=0.5, name="brief")
    client = world.reached_with(token)
    stream = client.events()
    ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def listen() -> None:
        try:
            list(stream)
            ended.put(None)
        except PerdureError as error:
            ended.put(error)

    threading.Thread(target=listen, daemon=True).start()
    assert isinstance(ended.get(timeout=DEADLINE_S), Unavailable | Unauthorized | None)  # what it has open ends too
    with pytest.raises(Unauthorized, match="expired"):
        client.list()
    world.client.border.remove_token("brief")


def test_a_renewed_token_keeps_its_sandboxes(world: World) -> None:
    token = world.token(name="older", expires_s=3600)
    made = world.reached_with(token).create(TINY)
    local = {"FCRUN_HOST": f"unix://{world.home.socket('fcrund')}"}
    status, out, err = world.fcrun("", "token", "renew", "older", "--expires", "1h", **local)
    assert (status, err) == (0, "") and out.split("_")[1] == token.split("_")[1]
    with pytest.raises(Unauthorized):
        world.reached_with(token).list()
    renewed = world.reached_with(out.strip())
    assert [info.id for info in renewed.list()] == [made.id]
    renewed.remove(made.id)
    assert world.fcrun("", "token", "renew", "nope", **local)[0] == 125
    world.client.border.remove_token("older")


def test_what_a_removed_token_has_open_ends(world: World) -> None:
    token = world.token(name="gone")
    with world.connect() as link:
        link.sendall(f"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        assert b"200 OK" in link.recv(65536)  # it is being served
        world.client.border.remove_token("gone")
        try:
            while link.recv(65536):
                pass
        except OSError:
            pass  # it was cut off


def test_tokens_outlive_the_node_and_damage_lets_nobody_in(tmp_path: Path) -> None:
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    with outside_node(home) as node:
        token = node.token("all", "kept")
    with outside_node(home) as node:
        assert node.reached_with(token).list() == []
    file = home.root / "tokens.json"
    whole = file.read_bytes()
    for damaged in (b"", whole[:-3], b'{"version":99,"tokens":[]}', whole.replace(b'"scope":"all"', b'"scope":"god"')):
        file.write_bytes(damaged)
        with outside_node(home) as node:
            with pytest.raises(Unauthorized):
                node.reached_with(token).list()
            with pytest.raises(PerdureError, match=r"tokens\.json"):
                node.token()
            assert node.client.list() == []  # the node itself serves who is here
        assert file.read_bytes() == damaged  # nothing is overwritten


def test_a_token_over_the_unix_socket_takes_rights_away(world: World) -> None:
    local = {"FCRUN_HOST": f"unix://{world.home.socket('fcrund')}"}
    assert world.fcrun("", "ps", "-aq", **local)[1].split() != []
    assert world.fcrun(world.bob, "ps", "-aq", **local)[1].split() == []
    status, _, said = world.fcrun("nonsense", "ps", **local)
    assert status == 125 and "no token" in said
