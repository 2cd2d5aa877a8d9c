"""Pulls and pushes of a real registry through a proxy that breaks them, and over a daemon that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.client.node import ensure_running
from perdure.testing.images import HandMade, root_layer, tar
from perdure.testing.proxy import Fault, FaultingProxy
from perdure.testing.registrynodes import Node, emptied, place, publish

DEADLINE_S = 60.0


@pytest.fixture
def node(pulling_node: Node) -> Iterator[Node]:
    with emptied(pulling_node) as node:
        yield node


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
