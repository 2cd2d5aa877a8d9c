"""Snapshots whose memory is in a real registry or bucket: machines resume from there, and fetch what they touch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.host import below as below_the_line
from perdure.host.paths import Home
from perdure.model import SandboxInfo, SandboxState, SnapshotInfo
from perdure.testing.proxy import Fault, FaultingProxy
from perdure.testing.servers import BUCKET, S3_ENVIRONMENT, registry_server, s3_server

from .conftest import PYTHON

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

# Holds 24 MiB of noise that it touches only when it is asked to.
HOLDER = r"""
import os, sys, zlib
held = os.urandom(24 << 20)
said = zlib.crc32(held)
print("up", said, flush=True)
for line in sys.stdin:
    print(line.strip(), os.getpid(), zlib.crc32(held) if "touch" in line else "", flush=True)
"""


@dataclass
class Away:
    """A store, behind a proxy that counts and misbehaves unless it is a folder."""

    url: str
    counted: FaultingProxy | None

    @property
    def proxy(self) -> FaultingProxy:
        assert self.counted is not None
        return self.counted

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
    request: pytest.FixtureRequest, servers: dict[str, str], client: NodeClient, home: Home, tmp_path: Path
) -> Iterator[Callable[[str], Away]]:
    """A store of this kind, reached through a proxy by a node that has the keys."""
    proxies: list[FaultingProxy] = []
    former = dict(os.environ)

    def store(kind: str) -> Away:
        if kind == "folder":
            return Away(str(tmp_path / "store"), None)
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


@pytest.fixture
def holder(
    start: Callable[..., SandboxInfo], client: NodeClient, converse: Callable[..., Any]
) -> Callable[[str], tuple[str, Any, str]]:
    """A running HOLDER of this name: its id, a conversation, the digest of what it holds."""

    def run(name: str) -> tuple[str, Any, str]:
        ref = start(*PYTHON, HOLDER, stdin=True, name=name).id
        talk = converse(client.attach(ref, logs=True))
        return ref, talk, talk.hear().removeprefix("up ")

    return run


@pytest.fixture
def suspended(
    holder: Callable[[str], tuple[str, Any, str]], client: NodeClient, home: Home, away: Callable[[str], Away]
) -> tuple[str, str, Away]:
    """A HOLDER that sleeps in a registry: its id, the digest of what it holds, the store."""
    for hint in home.templates.glob("*/working-set"):
        hint.unlink()  # another test's machine touched all it held: this one's would then be fetched unasked
    ref, _, held = holder("holder")
    store = away("registry")
    snapshot = client.suspend(ref)
    client.store.push(ref, store.url, tag="one")
    client.store.evict(ref)
    assert gone(home, client, snapshot)
    store.proxy.asked.clear()
    return ref, held, store


def gone(home: Home, client: NodeClient, snapshot: SnapshotInfo) -> bool:
    """None of the snapshot's memory layers is in the node's store."""
    layers = client.store.inspect(snapshot.digest)["memory"]["layers"]
    blobs = home.store / "blobs" / "sha256"
    return not any((blobs / layer["digest"].removeprefix("sha256:")).exists() for layer in layers)


@pytest.mark.parametrize("kind", ["folder", "registry", "s3"])
def test_a_machine_resumes_from_a_store_by_ranges(
    keeper: tuple[str, Any],
    ask: Callable[[Any, str], dict[str, Any]],
    client: NodeClient,
    home: Home,
    away: Callable[[str], Away],
    converse: Callable[..., Any],
    fcrun: Callable[..., subprocess.CompletedProcess[str]],
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
    client.resume(ref, populate=False)
    second = ask(converse(client.attach(ref)), "two")
    assert (second["pid"], second["memory"], second["notes"]) == (first["pid"], first["next"], "one\ntwo\n")
    again = client.suspend(ref)  # packed against a parent that is elsewhere
    assert again.parent == snapshot.digest
    client.resume(ref)
    third = ask(converse(client.attach(ref)), "three")
    assert (third["pid"], third["memory"], third["notes"]) == (first["pid"], second["next"], "one\ntwo\nthree\n")


@pytest.mark.parametrize("populate", [False, True])
def test_only_what_is_touched_comes_unless_all_is_wanted(
    suspended: tuple[str, str, Away],
    client: NodeClient,
    converse: Callable[..., Any],
    resident: Callable[[SandboxInfo], int],
    eventually: Callable[[Callable[[], object]], None],
    record_property: Callable[[str, object], None],
    populate: bool,
) -> None:
    ref, held, store = suspended
    info = client.resume(ref, populate=None if populate else False)
    talk = converse(client.attach(ref))
    assert talk.ask("hello").startswith("hello ")
    read = store.bytes_read
    if populate:
        eventually(lambda: "fed" not in client.get(ref).machine)  # its pager has gone
        assert store.bytes_read > 24 << 20
        store.down()
    else:
        record_property("bytes_read_at_the_first_answer", read)
        record_property("resident_bytes", resident(info))
        assert client.get(ref).machine["fed"]["bytes"] > 0
        assert 0 < read < 12 << 20
    assert talk.ask("touch").split()[2] == held
    client.suspend(ref)
    store.up()
    client.resume(ref)
    assert converse(client.attach(ref)).ask("touch").split()[2] == held


@pytest.mark.usefixtures("hasty_node")
def test_a_store_that_dies_ends_the_machine_with_the_cause(
    suspended: tuple[str, str, Away], client: NodeClient, converse: Callable[..., Any]
) -> None:
    ref, held, store = suspended
    client.resume(ref, populate=False)
    talk = converse(client.attach(ref))
    pid = talk.ask("hello").split()[1]
    store.down()
    talk.say("touch")
    dead = client.wait(ref)
    assert (dead.state, dead.cause) == (SandboxState.EXITED, "pager-died")
    assert store.url in dead.detail
    store.up()
    client.resume(ref)
    assert converse(client.attach(ref)).ask("touch") == f"touch {pid} {held}"


def test_a_node_that_is_killed_while_a_pager_waits(
    suspended: tuple[str, str, Away],
    client: NodeClient,
    home: Home,
    converse: Callable[..., Any],
    eventually: Callable[[Callable[[], object]], None],
) -> None:
    """The next node feeds it."""
    ref, held, store = suspended
    info = client.resume(ref, populate=False)
    talk = converse(client.attach(ref))
    pid = talk.ask("hello").split()[1]
    store.down("stall")
    before = len(store.proxy.asked)
    talk.say("touch")
    eventually(lambda: len(store.proxy.asked) > before)
    os.kill(client.system()["pid"], signal.SIGKILL)
    store.up()
    ensure_running(home)
    assert client.get(ref).machine["firecracker_pid"] == info.machine["firecracker_pid"]
    eventually(lambda: b"touch" in b"".join(record.data for record in client.logs(ref)))
    said = b"".join(record.data for record in client.logs(ref)).decode().splitlines()
    assert said[-1] == f"touch {pid} {held}"


def test_a_snapshot_goes_on_at_another_node(
    suspended: tuple[str, str, Away],
    client: NodeClient,
    home: Home,
    converse: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """One that shares nothing with the first but the store."""
    _, held, store = suspended
    there = Home(tmp_path_factory.mktemp("there"), home.cache).make()
    ensure_running(there)
    try:
        other = NodeClient(there)
        pulled = other.store.pull(store.url, "one", lazy=True)
        assert pulled.elsewhere_bytes > 24 << 20
        other.store.collect()  # it is kept, although no sandbox names it
        assert other.store.list()[0].tags == [f"pulled-{pulled.digest.removeprefix('sha256:')[:32]}"]
        (fork,) = other.fork(pulled.digest)
        assert other.store.list()[0].tags == []
        talk = converse(other.attach(fork.id))
        word, _, found = talk.ask("touch").split()
        assert (word, found) == ("touch", held)
        other.suspend(fork.id)
        other.resume(fork.id)
        assert converse(other.attach(fork.id)).ask("touch").split()[2] == held
        other.remove(fork.id, force=True)
        assert other.store.list() == []
    finally:
        NodeClient(there).shutdown()
        below_the_line.stop(there)
