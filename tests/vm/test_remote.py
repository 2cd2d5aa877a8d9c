"""Snapshots whose memory is in a real registry or bucket: machines resume from there, and fetch what they touch."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.host.paths import Home
from perdure.model import SandboxInfo, SnapshotInfo
from perdure.testing.proxy import Fault, FaultingProxy
from perdure.testing.servers import BUCKET, S3_ENVIRONMENT, registry_server, s3_server

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

# Holds 24 MiB of noise that it touches only when it is asked to.
HOLDER = r"""
import hashlib, os, sys
held = os.urandom(24 << 20)
said = hashlib.sha256(held).hexdigest()
print("up", said, flush=True)
for line in sys.stdin:
    print(line.strip(), os.getpid(), hashlib.sha256(held).hexdigest() if "touch" in line else "", flush=True)
"""


@dataclass
class Away:
    """A store behind a proxy that counts and misbehaves; ``url`` is of the store."""

    url: str
    proxy: FaultingProxy

    @property
    def bytes_read(self) -> int:
        total = 0
        for asked in self.proxy.asked:
            if asked.method == "GET" and asked.range:
                first, last = asked.range.removeprefix("bytes=").split("-")
                total += int(last) - int(first) + 1
        return total

    def down(self, kind: str = "close") -> None:
        self.proxy.always.append(Fault(kind))

    def up(self) -> None:
        self.proxy.always.clear()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """HOST:PORT of each."""
    with s3_server() as s3, registry_server(tmp_path_factory.mktemp("registry")) as registry:
        yield {"s3": s3.removeprefix("http://"), "registry": registry}


@pytest.fixture
def away(
    request: pytest.FixtureRequest, servers: dict[str, str], client: NodeClient, home: Home
) -> Iterator[Callable[[str], Away]]:
    """A store of this kind, reached through a proxy by a node that has the keys."""
    proxies: list[FaultingProxy] = []
    former = dict(os.environ)

    def store(kind: str) -> Away:
        proxy = FaultingProxy(servers[kind])
        proxy.__enter__()
        proxies.append(proxy)
        name = f"{request.node.name.partition('[')[0].replace('_', '-')}-{kind}"
        if kind == "registry":
            return Away(f"oci+http://{proxy.host}/{name}", proxy)
        os.environ.update(S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": proxy.url, "AWS_ALLOW_HTTP": "true"})
        client.shutdown()
        ensure_running(home)
        return Away(f"s3://{BUCKET}/{name}", proxy)

    yield store
    for proxy in proxies:
        proxy.__exit__()
    for name in set(os.environ) - set(former):
        del os.environ[name]


@pytest.fixture
def resident(home: Home, below: Callable[..., str]) -> Callable[[SandboxInfo], int]:
    """Bytes of a machine that are in memory."""

    def measure(info: SandboxInfo) -> int:
        status = below(["/bin/cat", f"/proc/{info.machine['firecracker_pid']}/status"])
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:"))

    return measure


def gone(home: Home, client: NodeClient, snapshot: SnapshotInfo) -> bool:
    """None of the snapshot's memory layers is in the node's store."""
    layers = client.store.inspect(snapshot.digest)["memory"]["layers"]
    blobs = home.store / "blobs" / "sha256"
    return not any((blobs / layer["digest"].removeprefix("sha256:")).exists() for layer in layers)


@pytest.mark.parametrize("kind", ["registry", "s3"])
def test_a_machine_resumes_from_a_store_by_ranges(
    keeper: tuple[str, Any],
    ask: Callable[[Any, str], dict[str, Any]],
    client: NodeClient,
    home: Home,
    away: Callable[[str], Away],
    converse: Callable[..., Any],
    resident: Callable[[SandboxInfo], int],
    fcrun: Callable[..., subprocess.CompletedProcess[str]],
    record_property: Callable[[str, object], None],
    kind: str,
) -> None:
    ref, talk = keeper
    first = ask(talk, "one")
    store = away(kind)
    snapshot = client.suspend(ref)
    pushed = json.loads(fcrun("snapshot", "push", "--format", "json", ref, f"{store.url}:one").stdout)
    assert (pushed["digest"], pushed["tag"]) == (snapshot.digest, "one")
    evicted = json.loads(fcrun("snapshot", "evict", "--format", "json", ref).stdout)
    assert evicted["freed_bytes"] > 0
    assert gone(home, client, snapshot)
    store.proxy.asked.clear()
    info = client.resume(ref, populate=False)
    other = converse(client.attach(ref))
    second = ask(other, "two")
    read, held = store.bytes_read, resident(info)
    record_property(
        "figures", f"{kind}: read {read} of {evicted['freed_bytes']} bytes, {held} resident, {info.machine}"
    )
    print(f"FIGURES {kind}: read {read} of {evicted['freed_bytes']} bytes at the first answer, {held} resident")
    assert 0 < read < evicted["freed_bytes"]
    assert (second["pid"], second["memory"], second["notes"]) == (first["pid"], first["next"], "one\ntwo\n")
    again = client.suspend(ref)  # packed against a parent that is elsewhere
    assert again.parent == snapshot.digest
    client.resume(ref)
    third = ask(converse(client.attach(ref)), "three")
    assert (third["pid"], third["memory"], third["notes"]) == (first["pid"], second["next"], "one\ntwo\nthree\n")
