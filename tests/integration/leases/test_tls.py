"""What servers ask each other goes over TLS to who is meant, or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from perdure.client.server import ServerClient
from perdure.client.transport import Transport
from perdure.errors import InvalidValue, NoRights, PerdureError
from perdure.host import certificate
from perdure.testing.fleet import Fleet, Server, fleet, until
from perdure.testing.postgres import binaries

pytestmark = pytest.mark.skipif(binaries() is None, reason="PostgreSQL is not installed (Debian: postgresql)")

WAITS = """
from perdure import Context, agent

@agent(durability="replay")
def main(ctx: Context):
    print("it waits")
    return ctx.approval("Go on?").by
"""
AGENT = {"source": WAITS, "file": "agent.py", "function": "main", "durability": "replay"}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Fleet]:
    """With the certificate that somebody gave them, as for a port that other machines reach."""
    made_for, key = certificate.ensure(tmp_path / "tls", "127.0.0.1")
    with fleet(tmp_path, 2, PERDURE_TLS_CERTIFICATE=str(made_for), PERDURE_TLS_KEY=str(key)) as made:
        yield made


def parked(server: Server) -> str:
    run_id = server.client.start(**AGENT).id
    until(lambda: server.client.get(run_id).waits)
    return run_id


def told(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((server.home.run / "server.json").read_text())
    return found


def test_servers_that_other_machines_reach_ask_each_other_over_tls(two: Fleet) -> None:
    first, other = two.servers
    run_id = parked(first)
    assert urlsplit(told(first)["url"]).scheme == "https"
    pieces = other.client.printed(run_id, follow=True)
    assert next(pieces).data == b"it waits\n"
    assert other.client.approve(run_id, by="ada")["kind"] == "approval"
    assert other.client.result(run_id, timeout_s=30) == "ada"
    assert {server["fingerprint"] for server in other.client.servers()} == {told(first)["fingerprint"]}


def test_nobody_reaches_that_port_in_clear_and_who_comes_over_tls_knows_whom_he_asks(two: Fleet) -> None:
    facts, wrong = told(two.servers[0]), "00" * 32
    clear = facts["url"].replace("https:", "http:")
    with pytest.raises(PerdureError):
        Transport(clear, service="the server").call("GET", "/v1/status", timeout_s=10)
    client = ServerClient(url=facts["url"], token=facts["token"], fingerprint=facts["fingerprint"])
    assert client.status()["pid"] == two.servers[0].pid
    with pytest.raises(NoRights, match="no valid token"):
        ServerClient(url=facts["url"], token="x", fingerprint=facts["fingerprint"]).status()
    for fingerprint in (wrong, ""):
        with pytest.raises(NoRights, match="is not who it should be"):
            ServerClient(url=facts["url"], token=facts["token"], fingerprint=fingerprint).status()
    with pytest.raises(InvalidValue, match="in clear"):
        ServerClient(url="http://192.0.2.1:8750", token=facts["token"])


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"fingerprint": "00" * 32}, "its certificate is another one"),
        ({"url": "http://192.0.2.1:8750"}, "in clear: it is not asked"),
    ],
)
def test_a_server_that_is_not_who_its_lease_says_or_is_reached_in_clear_is_told_nothing(
    two: Fleet, changed: dict[str, str], why: str
) -> None:
    first, other = two.servers
    run_id = parked(first)
    with psycopg.connect(two.database.url, autocommit=True) as database:
        for server, facts in database.execute("SELECT server, facts FROM perdure.servers").fetchall():
            known = json.loads(facts)
            if known["pid"] == first.pid:
                new = json.dumps({**known, **changed}).encode()
                database.execute("UPDATE perdure.servers SET facts = %s WHERE server = %s", (new, server))
    with pytest.raises(NoRights, match=why):
        other.client.approve(run_id, by="ada")
    with pytest.raises(NoRights, match=why):
        list(other.client.printed(run_id, follow=True))
    first.client.approve(run_id, by="bob")
    assert first.client.result(run_id, timeout_s=30) == "bob"
