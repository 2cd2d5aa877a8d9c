"""The way in to a node over TCP: TLS, what tells a client where to go, who may use the socket; without a machine."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import InvalidValue, PerdureError, Unavailable
from perdure.host import certificate as tls
from perdure.host.paths import Home
from perdure.testing.outside import answer
from perdure.testing.owners import World

DEADLINE_S = 30.0


def test_a_command_works_over_tcp(tidy: World) -> None:
    status, out, err = tidy.fcrun(tidy.admin, "ps", "-a", "--format", "{{.Names}}")
    assert (status, err) == (0, "") and set(out.split()) == {"box", "hers"}
    status, out, err = tidy.fcrun("", "-H", f"tcp://{tidy.host}:{tidy.port}", "images", "-q", FCRUN_TOKEN=tidy.bob)
    assert (status, err) == (0, "") and out
    assert not (tidy.home.root / "of nobody").exists()  # it has nothing to do with a home here


def test_a_token_may_be_in_a_file(tidy: World, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(tidy.bob + "\n")
    assert tidy.fcrun("", "ps", FCRUN_TOKEN_FILE=str(file))[0] == 0
    status, _, said = tidy.fcrun("", "ps", FCRUN_TOKEN_FILE=str(tmp_path / "none"))
    assert status == 125 and "FCRUN_TOKEN_FILE" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"FCRUN_HOST": "http://127.0.0.1:1"}, ("FCRUN_HOST", "tcp://HOST:PORT")),
        ({"FCRUN_HOST": "tcp://127.0.0.1"}, ("FCRUN_HOST",)),
        ({"FCRUN_HOST": "tcp://x:y@127.0.0.1:1"}, ("FCRUN_HOST",)),
        ({"FCRUN_HOST": "unix://run.sock"}, ("FCRUN_HOST",)),
        ({"FCRUN_HOST": "tcp://127.0.0.1:1"}, ("does not answer", "Is the node running")),
        ({"FCRUN_HOST": "unix:///nowhere/fcrund.sock"}, ("does not answer",)),
        ({"FCRUN_TOKEN": ""}, ("wants a token", "fcrun token create")),
        ({"FCRUN_TOKEN": "two words"}, ("holds no token",)),
        ({"FCRUN_TOKEN": "fcrun_000000000000_" + "A" * 43}, ("not valid",)),
        ({"FCRUN_TOKEN": "secret"}, ("no token of fcrun",)),
        ({"FCRUN_FINGERPRINT": "00"}, ("FCRUN_FINGERPRINT", "64 hex digits")),
        ({"FCRUN_FINGERPRINT": "0" * 64}, ("is not who it should be", "fingerprint")),
        ({"FCRUN_FINGERPRINT": ""}, ("is not who it should be", "FCRUN_CA")),
        ({"FCRUN_FINGERPRINT": "", "FCRUN_CA": "/nowhere.pem"}, ("FCRUN_CA", "/nowhere.pem")),
    ],
)
def test_what_is_wrong_with_the_way_there(tidy: World, changes: dict[str, str], words: tuple[str, ...]) -> None:
    status, out, said = tidy.fcrun(tidy.bob, "ps", **changes)
    assert (status, out) == (125, "")
    for word in words:
        assert word in said
    assert tidy.bob not in said
    assert not (tidy.home.root / "of nobody").exists()  # a client over TCP starts no daemon


def test_its_own_certificate_holds_for_its_names(world: World) -> None:
    certificate = world.home.root / "tls" / "certificate.pem"
    more = {"FCRUN_FINGERPRINT": "", "FCRUN_CA": str(certificate)}
    assert world.fcrun(world.bob, "ps", **more)[0] == 0
    assert stat.S_IMODE((world.home.root / "tls" / "key.pem").stat().st_mode) == 0o600


def test_without_tls_nothing_is_said(world: World) -> None:
    with socket.create_connection((world.host, world.port), DEADLINE_S) as link:
        link.sendall(f"GET /v1/system HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.admin}\r\n\r\n".encode())
        heard = b""
        try:
            while piece := link.recv(4096):
                heard += piece
        except ConnectionError:
            pass
    assert b"HTTP" not in heard


def test_old_tls_is_refused(world: World) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection((world.host, world.port), DEADLINE_S) as link, pytest.raises(ssl.SSLError):
        context.wrap_socket(link)
    folder = world.home.root / "tls"  # the system's OpenSSL may refuse it by itself
    assert tls.context(folder / "certificate.pem", folder / "key.pem").minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_node_that_cannot_listen_says_why(tmp_path: Path, world: World) -> None:
    for line, word in (
        (f'listen = "{world.host}:{world.port}"', "cannot listen"),
        ('listen = "everywhere"', "is no HOST:PORT"),
        ('listen = "127.0.0.1:0"\ntls_certificate = "/nowhere.pem"\ntls_key = "/nowhere.key"', "/nowhere.pem"),
        ('tls_key = "/nowhere.key"', "both or neither"),
        ('group = "no-such-group"', "there is no group"),
        ("connections = 0", "connections"),
    ):
        home = Home(tmp_path / "home", tmp_path / "cache").make()
        (home.root / "settings.toml").write_text(f"[node]\n{line}\n")
        with pytest.raises(Unavailable) as error:
            ensure_running(home)
        assert word in str(error.value)


def test_answers_end_where_they_should(world: World) -> None:
    """Two requests over one connection."""
    with world.connect() as link:
        for _ in range(2):
            head = f"GET /v1/images HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.bob}\r\n\r\n"
            link.sendall(head.encode())
            assert answer(link).status == 200


# -- the group -------------------------------------------------------------------------------------------------------
GROUP_GID = 1  # daemon: every Debian has it


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_group_may_use_the_socket_and_nothing_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent != Path("/") and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    (home.root / "perdure.db").write_bytes(b"x")
    (home.root / "settings.toml").write_text('[node]\ngroup = "daemon"\n')

    def as_user(gid: int, work: Callable[[], str]) -> str:
        """What ``work`` gives for a user of that group, and of no other."""
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            try:
                os.setgroups([])
                os.setgid(gid)
                os.setuid(65534)
                try:
                    said = work()
                except (PerdureError, OSError) as error:
                    said = f"{type(error).__name__}: {error}"
                os.write(writer, said.encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as told:
            said = told.read()
        os.waitpid(child, 0)
        return said

    def reads(path: Path) -> Callable[[], str]:
        return lambda: "read " + path.read_bytes().decode()

    def lists(path: Path) -> Callable[[], str]:
        return lambda: "listed " + " ".join(map(str, path.iterdir()))

    ensure_running(home)
    client = NodeClient(home)
    try:
        assert as_user(GROUP_GID, lambda: str(client.list())) == "[]"
        refused = as_user(65534, lambda: str(client.list()))
        assert refused.startswith("NoRights: permission denied") and "usermod -aG daemon" in refused
        assert as_user(65534, lambda: str(ensure_running(home))).startswith("NoRights: permission denied")
        for work in (
            lists(home.root), lists(home.run), lists(home.sandboxes), reads(home.root / "perdure.db"),
            reads(home.run / "fcrund.log"), reads(home.root / "settings.toml"), reads(home.root / "headroom"),
        ):  # fmt: skip
            assert as_user(GROUP_GID, work).startswith("PermissionError"), work
        client.shutdown()
        (home.root / "settings.toml").unlink()
        ensure_running(home)
        refused = as_user(GROUP_GID, lambda: str(client.list()))
        assert refused.startswith("NoRights: permission denied") and "[node] group" in refused
    finally:
        client.shutdown()


def test_bad_settings(tmp_path: Path) -> None:
    from perdure.node import settings

    home = Home(tmp_path / "home", tmp_path / "cache").make()
    for line, word in (("group = 7", "group"), ("patience_s = -1", "patience_s"), ("lissen = 1", "known are")):
        (home.root / "settings.toml").write_text(f"[node]\n{line}\n")
        with pytest.raises(InvalidValue, match=word):
            settings.load(home, {})
