"""``fcrun pull, push, login, logout`` and ``--pull`` with a real registry, and skopeo as the other one that uses it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import PerdureError
from perdure.host.paths import Home
from perdure.testing.commands import Fcrun
from perdure.testing.images import (
    ARCHITECTURE,
    DOCKER_MANIFEST,
    OTHER_ARCHITECTURE,
    HandMade,
    digest_of,
    root_layer,
    tar,
)
from perdure.testing.proxy import Fault, FaultingProxy
from perdure.testing.servers import registry_server

from .test_registry_logins import HTPASSWD

DEADLINE_S = 60.0
_numbers = iter(range(1 << 30))


@dataclass
class Node:
    """A running fcrund of a user who has no logins yet."""

    home: Home
    client: NodeClient
    fcrun: Fcrun
    docker: Path

    def names(self) -> set[str]:
        return {image.name for image in self.client.images()}

    def images_folder(self) -> Path:
        return self.home.images


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    for program in ("mksquashfs", "docker-registry", "skopeo"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    home = Home(tmp_path / "home", tmp_path / "cache").make()
    ensure_running(home)
    client = NodeClient(home)
    try:
        yield Node(home, client, Fcrun(home), tmp_path / "docker")
    finally:
        client.shutdown()


def skopeo(*argv: str) -> str:
    """What skopeo says; with no policy file of the machine's."""
    done = subprocess.run(["skopeo", "--insecure-policy", *argv], capture_output=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def place(registry: str) -> str:
    """A repository that nobody has used."""
    return f"{registry}/some/image-{next(_numbers)}"


def publish(made: HandMade, named: dict[str, Any], name: str, folder: Path) -> None:
    """By skopeo, whatever it is."""
    source = made.layout(folder / f"layout-{next(_numbers)}", named)
    skopeo("copy", "--all", "--preserve-digests", "--dest-tls-verify=false", source, f"docker://{name}")


def raw(name: str) -> bytes:
    """The manifest that a name stands for, as skopeo finds it."""
    return skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{name}").encode()


@pytest.mark.parametrize("how", ["+gzip", "+zstd", ""])
def test_pull_and_push_again_keep_every_digest(node: Node, registry: str, tmp_path: Path, how: str) -> None:
    made = HandMade()
    image = made.image([root_layer({"a": b"1"}), tar({"b": os.urandom(100_000)})], how)
    name = f"{place(registry)}:v1"
    publish(made, image, name, tmp_path)
    lines = node.fcrun.said("pull", name).splitlines()
    manifest = json.loads(made.blobs[image["digest"]])
    layers = [layer["digest"][7:19] for layer in manifest["layers"]]
    path = name.partition("/")[2].rpartition(":")[0]
    assert lines == [
        f"v1: Pulling from {path}",
        *[f"{layer}: Pull complete" for layer in layers],
        f"Digest: {image['digest']}",
        f"Status: Downloaded newer image for {name}",
        name,
    ]
    assert node.fcrun.said("pull", name).splitlines()[-2] == f"Status: Image is up to date for {name}"
    assert node.fcrun.said("pull", "-q", name) == f"{name}\n"
    assert node.client.images()[0].pulled == image["digest"]

    other = f"{place(registry)}:again"
    node.fcrun.said("tag", name, other)
    pushed = node.fcrun.said("push", other).splitlines()
    assert pushed[0] == f"The push refers to repository [{other.rpartition(':')[0]}]"
    assert pushed[1:3] == [f"{layer}: Mounted from another repository" for layer in layers]
    assert pushed[3] == f"again: digest: {image['digest']} size: {image['size']}"
    assert raw(other) == made.blobs[image["digest"]]
    again = node.fcrun.said("push", other).splitlines()
    assert again[1:3] == [f"{layer}: Layer already exists" for layer in layers]
    skopeo("copy", "--src-tls-verify=false", f"docker://{other}", f"oci:{tmp_path / 'back'}:x")  # it verifies all


def test_dockers_own_kinds(node: Node, registry: str, tmp_path: Path) -> None:
    """Schema 2, and a manifest list around it."""
    made = HandMade()
    mine = made.image([root_layer()], docker=True)
    other = made.image([root_layer(architecture=OTHER_ARCHITECTURE)], docker=True, architecture=OTHER_ARCHITECTURE)
    kind = "application/vnd.docker.distribution.manifest.list.v2+json"
    both = made.index([(other, f"linux/{OTHER_ARCHITECTURE}"), (mine, f"linux/{ARCHITECTURE}")], kind)
    name = f"{place(registry)}:list"
    made.upload(registry, name.partition("/")[2].removesuffix(":list"), both, "list")
    said = node.fcrun.said("pull", name)
    assert f"Digest: {both['digest']}" in said
    parts = node.client.images()[0]
    assert parts.pulled == both["digest"]
    back = f"{place(registry)}:mine"
    node.fcrun.said("tag", name, back)
    assert f"digest: {mine['digest']}" in node.fcrun.said("push", back)
    assert json.loads(raw(back))["mediaType"] == DOCKER_MANIFEST


def test_an_index_has_the_image_of_each_platform(node: Node, registry: str, tmp_path: Path) -> None:
    made = HandMade()
    mine = made.image([root_layer({"mine": b"1"})])
    other = made.image([root_layer(architecture=OTHER_ARCHITECTURE)], architecture=OTHER_ARCHITECTURE)
    both = made.index([(other, f"linux/{OTHER_ARCHITECTURE}/v8"), (mine, f"linux/{ARCHITECTURE}")])
    name = f"{place(registry)}:both"
    publish(made, both, name, tmp_path)
    node.fcrun.said("pull", "--platform", f"linux/{ARCHITECTURE}", name)
    assert (node.client.images()[0].pulled, node.names()) == (both["digest"], {name})
    status, _, said = node.fcrun("pull", "--platform", f"linux/{OTHER_ARCHITECTURE}", name)
    assert status == 125 and f"this node runs linux/{ARCHITECTURE}" in said

    alone = made.index([(other, f"linux/{OTHER_ARCHITECTURE}/v8")])
    elsewhere = f"{place(registry)}:other"
    publish(made, alone, elsewhere, tmp_path)
    status, _, said = node.fcrun("pull", elsewhere)
    assert status == 125 and f"no matching manifest for linux/{ARCHITECTURE}" in said
    assert f"It has linux/{OTHER_ARCHITECTURE}/v8" in said
    publish(made, other, elsewhere, tmp_path)  # the image itself, without an index
    status, _, said = node.fcrun("pull", elsewhere)
    assert status == 125 and f"is for linux/{OTHER_ARCHITECTURE}" in said
    assert node.names() == {name}


def test_by_digest(node: Node, registry: str, tmp_path: Path) -> None:
    made = HandMade()
    image = made.image([root_layer()])
    repository = place(registry)
    publish(made, image, f"{repository}:v1", tmp_path)
    name = f"{repository}@{image['digest']}"
    said = node.fcrun.said("pull", name).splitlines()
    assert said[0].startswith(f"{image['digest']}: Pulling from") and said[-1] == name
    assert node.names() == {name}
    row = node.fcrun.said("images", "--digests").splitlines()[1].split()
    assert row[:3] == [repository, "<none>", image["digest"]]
    sandbox = node.fcrun.said("create", name).strip()
    assert node.client.get(sandbox).spec.image == name
    node.client.remove(sandbox)
    node.fcrun.said("rmi", name)
    node.fcrun.said("pull", f"{repository}:v1")
    assert node.fcrun("create", "--pull", "never", name)[0] == 0  # known by its digest, too
    status, _, told = node.fcrun("push", name)
    assert status == 125 and "to a tag, not to a digest" in told
    status, _, told = node.fcrun("pull", f"{repository}@sha256:{'0' * 64}")
    assert status == 125 and "has no manifest" in told


@pytest.mark.parametrize("where", ["docker-archive", "oci-archive"])
def test_what_was_loaded_is_pushed(node: Node, registry: str, tmp_path: Path, where: str) -> None:
    made = HandMade()
    image = made.image([root_layer(), tar({"b": b"2" * 5000})])
    archive = tmp_path / "image.tar"
    skopeo("copy", made.layout(tmp_path / "layout", image), f"{where}:{archive}:loaded:v1")
    node.fcrun.said("load", "-i", str(archive))
    name = f"{place(registry)}:v1"
    node.fcrun.said("tag", "loaded:v1", name)
    node.fcrun.said("push", name)
    found = json.loads(raw(name))
    config = json.loads(skopeo("inspect", "--config", "--raw", "--tls-verify=false", f"docker://{name}"))
    assert (
        config["rootfs"]["diff_ids"]
        == json.loads(made.blobs[json.loads(made.blobs[image["digest"]])["config"]["digest"]])["rootfs"]["diff_ids"]
    )
    skopeo("copy", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path / 'back'}:x")
    assert (digest_of(raw(name)) == image["digest"]) == (where == "oci-archive")
    assert found["schemaVersion"] == 2


def test_what_was_imported_is_pushed_and_pulled_by_another_node(node: Node, registry: str, tmp_path: Path) -> None:
    node.client.import_image("own", root_layer({"a": b"x" * 1000}), changes=["ENV A=b", 'CMD ["/bin/init"]'])
    name = f"{place(registry)}:latest"
    node.fcrun.said("tag", "own", name)
    said = node.fcrun.said("push", name.rpartition(":")[0]).splitlines()
    assert said[0] == "Using default tag: latest" and said[2].endswith(": Pushed")
    inspected = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{name}"))
    assert inspected["Env"] == ["A=b"] and inspected["Architecture"] == ARCHITECTURE
    home = Home(tmp_path / "second", tmp_path / "cache").make()
    ensure_running(home)
    second = NodeClient(home)
    try:
        second.registries.pull(name)
        assert second.images()[0].digest == node.client.images()[0].digest  # the same disk and configuration
    finally:
        second.shutdown()


def test_push_of_all_tags_and_of_what_is_not_here(node: Node, registry: str) -> None:
    node.client.import_image("own", root_layer())
    repository = place(registry)
    for tag in ("one", "two"):
        node.fcrun.said("tag", "own", f"{repository}:{tag}")
    said = node.fcrun.said("push", "--all-tags", repository)
    assert "one: digest: sha256:" in said and "two: digest: sha256:" in said
    assert json.loads(skopeo("list-tags", "--tls-verify=false", f"docker://{repository}"))["Tags"] == ["one", "two"]
    assert node.fcrun.said("push", "-q", f"{repository}:one") == f"{repository}:one\n"
    for argv, word in (
        (("push", "-a", f"{repository}:one"), "exclude each other"),
        (("push", f"{repository}:three"), "no image"),
        (("push", "-a", f"{repository}-none"), "no image here"),
    ):
        status, _, told = node.fcrun(*argv)
        assert status == 125 and word in told


def test_the_policies_of_run_and_create(node: Node, registry: str, tmp_path: Path) -> None:
    made = HandMade()
    name = f"{place(registry)}:v1"
    publish(made, made.image([root_layer({"a": b"1"})]), name, tmp_path)
    status, _, said = node.fcrun("create", "--pull", "never", name)
    assert status == 125 and "no image" in said and node.names() == set()
    status, out, said = node.fcrun("create", name)  # missing
    lines = said.splitlines()
    assert status == 0 and lines[0] == f"Unable to find image '{name}' locally"
    assert lines[-1] == f"Status: Downloaded newer image for {name}"
    assert len(out.strip()) == 12  # its output is the id alone
    first = node.client.get(out.strip()).image_digest
    publish(made, made.image([root_layer({"a": b"2"})]), name, tmp_path)  # the tag moves
    status, out, said = node.fcrun("create", name)
    assert (status, said) == (0, "") and node.client.get(out.strip()).image_digest == first
    status, out, said = node.fcrun("create", "--pull", "always", name)
    assert status == 0 and "Downloaded newer image" in said
    assert node.client.get(out.strip()).image_digest != first
    status, out, said = node.fcrun("create", "--pull", "always", "-q", name)
    assert (status, said) == (0, "")
    node.client.import_image("local", root_layer())
    assert node.fcrun("create", "local", "true")[::2] == (0, "")  # nothing is asked where it is here
    status, _, said = node.fcrun("run", f"{registry}/none/such", "true")
    assert status == 125 and f"Unable to find image '{registry}/none/such:latest' locally" in said
    assert "has no tag latest" in said


def test_a_layer_that_is_here_is_not_fetched_again(node: Node, registry: str, tmp_path: Path) -> None:
    made = HandMade()
    base = root_layer({"base": os.urandom(50_000)})
    one, other = f"{place(registry)}:1", f"{place(registry)}:2"
    publish(made, made.image([base]), one, tmp_path)
    publish(made, made.image([base, tar({"more": b"2"})]), other, tmp_path)
    node.fcrun.said("pull", one)
    said = node.fcrun.said("pull", other).splitlines()
    assert [line.partition(": ")[2] for line in said[1:3]] == ["Already exists", "Pull complete"]
    used = {use.kind: use for use in node.client.disk_use()}["images"]
    blobs = sum(path.stat().st_size for path in (node.images_folder() / "blobs").iterdir())
    assert blobs > 50_000 and used.size_bytes > blobs  # what is kept to be sent on is counted
    node.fcrun.said("rmi", one)
    node.fcrun.said("rmi", other)
    assert list((node.images_folder() / "blobs").iterdir()) == []


# -- what breaks on the way --------------------------------------------------------------------------------------------


def large_image(registry: str, tmp_path: Path, size: int = 24 << 20) -> tuple[HandMade, str, str]:
    """(…, its name, the digest of its only layer)"""
    made = HandMade()
    image = made.image([root_layer({"noise": os.urandom(size)})], "")
    name = f"{place(registry)}:v1"
    publish(made, image, name, tmp_path)
    return made, name, json.loads(made.blobs[image["digest"]])["layers"][0]["digest"]


def starts(proxy: FaultingProxy, digest: str) -> list[int]:
    """From which bytes on a blob was asked for."""
    asked = [one for one in proxy.asked if digest in one.path and one.method == "GET"]
    return [int(one.range.removeprefix("bytes=").partition("-")[0]) for one in asked]


def test_a_pull_goes_on_after_broken_connections(node: Node, registry: str, tmp_path: Path) -> None:
    _, name, layer = large_image(registry, tmp_path)
    with FaultingProxy(registry) as proxy:
        name = name.replace(registry, proxy.host)
        proxy.faults = [Fault(kind, lambda asked: layer in asked.path) for kind in ("short", "close", "short")]
        node.fcrun.said("pull", name)
        assert not proxy.faults
        assert len(starts(proxy, layer)) == 7 + 3  # what broke was asked for once more, and nothing else
    assert node.names() == {name}


def test_a_pull_goes_on_after_the_daemon_was_killed(node: Node, registry: str, tmp_path: Path) -> None:
    _, name, layer = large_image(registry, tmp_path)
    with FaultingProxy(registry) as proxy:
        name = name.replace(registry, proxy.host)
        stalls = Fault("stall", lambda asked: layer in asked.path and asked.range.startswith(f"bytes={12 << 20}-"))
        proxy.always = [stalls]
        pulling = subprocess.Popen(
            [sys.executable, "-m", "perdure.cli.fcrun", "pull", name],
            env={**os.environ, "PERDURE_HOME": str(node.home.root), "PERDURE_CACHE": str(node.home.cache)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        part = node.images_folder() / "incoming" / f"{layer.removeprefix('sha256:')}.part"
        wait_until(lambda: part.exists() and part.stat().st_size >= 12 << 20)
        os.kill(int(node.client.system()["pid"]), signal.SIGKILL)
        assert pulling.wait(DEADLINE_S) == 125
        ensure_running(node.home)
        assert node.client.images() == []  # nothing half
        proxy.always, proxy.asked = [], []
        node.fcrun.said("pull", name)
        assert min(starts(proxy, layer)) == 12 << 20
    assert node.names() == {name} and not part.exists()


def wait_until(done: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_damaged_blob_is_fetched_again(node: Node, registry: str, tmp_path: Path) -> None:
    """One bit is another, on its way; and of a blob that lies here."""
    made, name, layer = large_image(registry, tmp_path, 5 << 20)
    with FaultingProxy(registry) as proxy:
        through = name.replace(registry, proxy.host)
        proxy.faults = [Fault("flip", lambda asked: layer in asked.path and asked.method == "GET")]
        node.fcrun.said("pull", through)
        assert not proxy.faults and len(starts(proxy, layer)) == 4
    blob = node.images_folder() / "blobs" / layer.removeprefix("sha256:")
    kept = bytearray(blob.read_bytes())
    kept[len(kept) // 2] ^= 1
    blob.write_bytes(kept)
    other = f"{place(registry)}:more"
    base = made.blobs[layer]
    publish(made, made.image([base, tar({"more": b"2"})], ""), other, tmp_path)
    node.fcrun.said("pull", other)
    assert blob.read_bytes() == base
    kept[0] ^= 1
    blob.write_bytes(kept)
    node.fcrun.said("tag", other, f"{place(registry)}-push:x")
    pushed = f"{registry}/fresh/place:x"
    node.fcrun.said("tag", other, pushed)
    with FaultingProxy(registry) as proxy:  # a registry that has nothing of it, and mounts nothing
        pushed = pushed.replace(registry, proxy.host)
        node.fcrun.said("tag", other, pushed)
        status, _, said = node.fcrun("push", pushed)
        assert status == 125 and "it was damaged or changed" in said


def test_prune_gives_up_what_came_half(node: Node, registry: str, tmp_path: Path) -> None:
    _, name, layer = large_image(registry, tmp_path, 9 << 20)
    with FaultingProxy(registry) as proxy:
        name = name.replace(registry, proxy.host)
        proxy.always = [Fault("status", lambda asked: asked.range.startswith(f"bytes={8 << 20}-"), status=403)]
        status, _, said = node.fcrun("pull", name)
        assert status == 125 and "403" in said and node.names() == set()
        part = node.images_folder() / "incoming" / f"{layer.removeprefix('sha256:')}.part"
        assert part.stat().st_size == 8 << 20  # the next pull would go on with it
        assert {use.kind: use for use in node.client.disk_use()}["images"].reclaimable_bytes >= 8 << 20
        assert "Total reclaimed space: 8." in node.fcrun.said("system", "prune", "-f")
        assert not part.exists()


# -- logins ------------------------------------------------------------------------------------------------------------


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


def test_errors_of_the_library_are_those_of_the_client(node: Node) -> None:
    with pytest.raises(PerdureError) as caught:
        node.client.registries.pull("UPPER/..")
    assert caught.value.code == "invalid-value"
