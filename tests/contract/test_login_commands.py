"""``fcrun login, logout`` with a real registry that wants a password."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perdure.host.paths import Home
from perdure.testing.commands import Fcrun
from perdure.testing.images import root_layer
from perdure.testing.registrynodes import Node, emptied, skopeo
from perdure.testing.servers import registry_server

from .test_registry_logins import HTPASSWD


@pytest.fixture
def node(pulling_node: Node) -> Iterator[Node]:
    with emptied(pulling_node) as node:
        yield node


@contextmanager
def protected(folder: Path) -> Iterator[str]:
    folder.mkdir()
    (folder / "htpasswd").write_text(HTPASSWD)
    with registry_server(folder, f"{{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}") as host:
        yield host


def test_login_pull_push_logout(node: Node, tmp_path: Path) -> None:
    node.client.import_image("own", root_layer())
    with protected(tmp_path / "registry") as host:
        name = f"{host}/team/own:v1"
        node.fcrun.said("tag", "own", name)
        status, _, said = node.fcrun("push", name)
        assert status == 125 and "refuses us" in said and f"fcrun login {host}" in said
        status, _, said = node.fcrun("login", "-u", "me", "--password-stdin", host, stdin=b"wrong\n")
        assert status == 125 and "Look at the user name and the password" in said
        assert not (node.docker / "config.json").exists()
        status, out, said = node.fcrun("login", "-u", "me", "--password-stdin", host, stdin=b"secret\n")
        assert (status, out) == (0, "Login Succeeded\n") and "stored unencrypted" in said
        kept = node.docker / "config.json"
        assert json.loads(kept.read_text()) == {"auths": {host: {"auth": base64.b64encode(b"me:secret").decode()}}}
        assert kept.stat().st_mode & 0o777 == 0o600
        node.fcrun.said("push", name)  # the node was started before there was a login
        node.client.remove_image(name)
        node.fcrun.said("pull", name)
        shown = skopeo("inspect", "--tls-verify=false", f"--authfile={kept}", f"docker://{name}")  # it reads the same
        assert json.loads(shown)["Name"] == f"{host}/team/own"
        assert node.fcrun.said("logout", host) == f"Removing login credentials for {host}\n"
        assert node.fcrun.said("logout", host) == f"Not logged in to {host}\n"
        status, _, said = node.fcrun("pull", name)
        assert status == 125 and "refuses us" in said


def test_a_login_that_a_helper_keeps(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "vault"
    helper = tmp_path / "docker-credential-vault"
    helper.write_text(
        f"""#!/bin/sh
        case "$1" in
        store) cat > {kept};;
        get) cat > /dev/null; cat {kept} || {{ echo "credentials not found in native keychain"; exit 1; }};;
        erase) cat > /dev/null; rm -f {kept};;
        esac
        """
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    node.docker.mkdir()
    (node.docker / "config.json").write_text('{"credsStore": "vault", "HttpHeaders": {"x": "y"}}')
    node.client.import_image("own", root_layer())
    with protected(tmp_path / "registry") as host:
        status, out, said = node.fcrun("login", "-u", "me", "--password-stdin", host, stdin=b"secret")
        assert (status, out, said) == (0, "Login Succeeded\n", "")
        assert json.loads(kept.read_text()) == {"ServerURL": host, "Username": "me", "Secret": "secret"}
        config = json.loads((node.docker / "config.json").read_text())
        assert config == {"credsStore": "vault", "HttpHeaders": {"x": "y"}, "auths": {host: {}}}
        name = f"{host}/own:v1"
        node.fcrun.said("tag", "own", name)
        node.fcrun.said("push", name)
        node.fcrun.said("logout", host)
        assert not kept.exists() and node.fcrun("push", name)[0] == 125


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (("login", "localhost:1"), "nobody can be asked"),
        (("login", "--password-stdin", "localhost:1"), "needs --username"),
        (("login", "-u", "me", "-p", "x", "--password-stdin", "localhost:1"), "exclude each other"),
        (("login", "-u", "me", "--password-stdin", "a/../b"), "Docker Hub"),
        (("login", "-u", "me", "--password-stdin", "UPPER_host!"), "is no registry"),
        (("login", "-u", "m:e", "-p", "x", "localhost:1"), "no colon"),
        (("logout", "no registry"), "is no registry"),
    ],
)
def test_logins_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], word: str
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    fcrun = Fcrun(Home(tmp_path / "home", tmp_path / "cache"))
    status, _, said = fcrun(*argv)
    assert status == 125 and word in said
    assert not (tmp_path / "home").exists()  # no node is needed to say so


def test_a_password_is_asked_for_without_an_echo(node: Node, tmp_path: Path) -> None:
    import pty

    with protected(tmp_path / "registry") as host:
        process, terminal = pty.fork()
        if process == 0:
            homes = {"PERDURE_HOME": str(node.home.root), "PERDURE_CACHE": str(node.home.cache)}
            os.execve(sys.executable, [sys.executable, "-m", "perdure.cli.fcrun", "login", host], os.environ | homes)
        said = b""
        for wait_for, answer in ((b"Username: ", b"me\n"), (b"Password: ", b"secret\n")):
            while wait_for not in said:
                said += os.read(terminal, 1000)
            os.write(terminal, answer)
        try:
            while data := os.read(terminal, 1000):
                said += data
        except OSError:
            pass  # it has ended
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
        os.close(terminal)
        assert b"Login Succeeded" in said and b"secret" not in said
