"""A node that pulls from registries and pushes to them, and skopeo as the other one that uses them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.host.paths import Home
from perdure.testing.commands import Fcrun
from perdure.testing.images import HandMade

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


@contextmanager
def registry_node(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """It runs, and ends afterwards; the test is skipped where a program is missing."""
    for program in ("mksquashfs", "docker-registry", "skopeo"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    monkeypatch.setenv("DOCKER_CONFIG", str(folder / "docker"))
    home = Home(folder / "home", folder / "cache").make()
    ensure_running(home)
    client = NodeClient(home)
    try:
        yield Node(home, client, Fcrun(home), folder / "docker")
    finally:
        client.shutdown()


@contextmanager
def emptied(node: Node) -> Iterator[Node]:
    """What a test leaves there goes after it: sandboxes, images, logins. It may kill the daemon."""
    yield node
    ensure_running(node.home)
    for info in node.client.list():
        node.client.remove(info.id, force=True)
    for image in node.client.images():
        node.client.remove_image(image.name or image.digest)
    shutil.rmtree(node.docker, ignore_errors=True)


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
