"""What may be set of a server beside others."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.errors import InvalidValue
from perdure.host import identity
from perdure.host.paths import Home
from perdure.runs.tenure import Terms
from perdure.server.sharing import load, secured


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path / "cache")


def test_nothing_needs_to_be_set(home: Home) -> None:
    found = load(home, {})
    assert (found.host, found.port, found.terms) == ("127.0.0.1", 0, Terms(heartbeat_s=1.0, lost_s=5.0))
    assert found.terms.looks == 5


def test_the_file_says_so_and_the_environment_before_it(home: Home) -> None:
    (home.root / "settings.toml").write_text('[servers]\nlisten = "10.0.0.5:8750"\nheartbeat_s = 2\nlost_s = 10\n')
    found = load(home, {"PERDURE_HEARTBEAT_S": "0.5", "PERDURE_LISTEN": "[::1]:0"})
    assert (found.host, found.port, found.terms) == ("::1", 0, Terms(heartbeat_s=0.5, lost_s=10.0))


@pytest.mark.parametrize(
    ("text", "environ", "told"),
    [
        ("[servers]\nlost = 1", {}, "unknown setting 'lost'"),
        ("[servers]\nheartbeat_s = 0", {}, "heartbeat_s is 0"),
        ("[servers]\nheartbeat_s = true", {}, "heartbeat_s is True"),
        ("[servers]\nheartbeat_s = 3.0", {}, "less than two heartbeats"),
        ("[servers]\nlisten = 'here'", {}, "listen is 'here'"),
        ("", {"PERDURE_LOST_S": "soon"}, "PERDURE_LOST_S is 'soon'"),
        ("servers = 1", {}, "servers is not a table"),
        ("[servers]\nlisten = 1", {}, "listen is 1: not a text"),
        ("[servers]\nnode = 'there'", {}, "node is no absolute path: 'there'"),
        ("", {"PERDURE_NODE": "unix:///x"}, "PERDURE_NODE is no absolute path"),
        ("[servers]\ntls_key = '/k'", {}, "tls_key is given alone"),
        ("", {"PERDURE_TLS_CERTIFICATE": "/c"}, "PERDURE_TLS_CERTIFICATE is given alone"),
    ],
)
def test_what_is_wrong_is_named(home: Home, text: str, environ: dict[str, str], told: str) -> None:
    (home.root / "settings.toml").write_text(text)
    with pytest.raises(InvalidValue, match=told):
        load(home, environ)


def test_what_other_machines_reach_has_tls_and_loopback_has_none(home: Home) -> None:
    for listen in ("127.0.0.1:0", "127.9.8.7:1", "[::1]:0", "localhost:0"):
        assert not load(home, {"PERDURE_LISTEN": listen}).is_secret
    for listen in ("0.0.0.0:0", "10.0.0.5:8750", "[::]:0", "[2001:db8::1]:1", "nowhere.invalid:1"):
        assert load(home, {"PERDURE_LISTEN": listen}).is_secret
    assert secured(home, load(home, {})) == (None, "")
    context, fingerprint = secured(home, load(home, {"PERDURE_LISTEN": "0.0.0.0:0"}))
    assert context is not None and len(fingerprint) == 64
    assert secured(home, load(home, {"PERDURE_LISTEN": "0.0.0.0:0"}))[1] == fingerprint  # it is made once
    made = {"PERDURE_TLS_CERTIFICATE": str(home.root / "server.tls/certificate.pem")}
    made |= {"PERDURE_TLS_KEY": str(home.root / "server.tls/key.pem")}
    assert secured(home, load(home, made))[1] == fingerprint  # on loopback, too, where somebody gives one
    with pytest.raises(InvalidValue, match="no TLS with the certificate"):
        secured(home, load(home, {**made, "PERDURE_TLS_KEY": "/nowhere"}))


def test_a_server_may_use_another_homes_node_and_a_store(home: Home) -> None:
    (home.root / "settings.toml").write_text('[servers]\nnode = "/var/lib/other"\nsnapshots = "s3://a/b"\n')
    found = load(home, {})
    assert (str(found.node.root), found.snapshots) == ("/var/lib/other", "s3://a/b")
    assert load(home, {"PERDURE_NODE": "/n", "PERDURE_SNAPSHOTS": "/s"}).node.root.name == "n"
    (home.root / "settings.toml").unlink()
    assert load(home, {}).node == home


def test_a_node_keeps_its_id(home: Home) -> None:
    first = identity.place(home)
    assert len(first.id) == 12 and identity.place(home) == first
    (home.root / "node.id").write_text("\0\n")
    with pytest.raises(InvalidValue, match="holds no id of a node"):
        identity.place(home)
