"""Stores that stall, break off, lie or are overloaded: tried again, then a clear reason; nothing stays half."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from perdure.errors import NoRights, NotFound, PerdureError, SnapshotInvalid, Unavailable
from perdure.execution.registry.contract import RemoteStore
from perdure.execution.registry.retry import Patience
from perdure.execution.snapshots import transfer
from perdure.execution.snapshots.cache import REQUESTS, FrameCache
from perdure.execution.snapshots.store import Store
from perdure.execution.snapshots.stores import open_store
from perdure.formats.manifest import LIMIT_BYTES, Descriptor, Snapshot, digest_of
from perdure.testing.proxy import Asked, Fault, FaultingProxy
from perdure.testing.servers import BUCKET, S3_ENVIRONMENT
from perdure.testing.snapshots import BLOCKS
from perdure.testing.stores import Node, block

TRIES = 3
DATA = random.Random(2).randbytes(200_000)
_numbers = iter(range(1 << 30))


@dataclass
class Bad:
    """A store behind a faulting proxy, and the same one without."""

    kind: str
    proxy: FaultingProxy
    store: RemoteStore
    straight: RemoteStore
    allowed: int  # tries
    pauses: list[float] = field(default_factory=list)

    def is_blob(self, asked: Asked) -> bool:
        return asked.method == "GET" and "/blobs/" in asked.path

    def tries(self) -> int:
        return len([asked for asked in self.proxy.asked if self.is_blob(asked)])

    def put(self, data: bytes, folder: Path) -> Descriptor:
        """Past the proxy."""
        (folder / "data").write_bytes(data)
        descriptor = Descriptor(media_type="test", digest=digest_of(data), size=len(data))
        self.straight.put(descriptor, folder / "data")
        return descriptor


@pytest.fixture(params=["s3", "registry"])
def bad(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bad]:
    upstream = request.getfixturevalue(request.param).removeprefix("http://")
    name = f"bad/place-{next(_numbers)}"
    pauses: list[float] = []
    # Short where something stalls, and long enough elsewhere for a machine that has much else to do.
    fault = request.node.callspec.params.get("fault", Fault("none"))
    stalls = fault.kind.startswith(("stall", "trickle"))
    timeout_s, tries = (0.6, 2) if stalls else (10.0, TRIES)  # each try takes the whole of it
    patience = Patience(tries=tries, request_timeout_s=timeout_s, answer_factor=2, pause=pauses.append)
    with FaultingProxy(upstream) as proxy:
        if request.param == "s3":
            for key, value in S3_ENVIRONMENT.items():
                monkeypatch.setenv(key, value)
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{upstream}")
            straight = open_store(f"s3://{BUCKET}/{name}")
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
            store = open_store(f"s3://{BUCKET}/{name}", patience)
        else:
            straight = open_store(f"oci+http://{upstream}/{name}")
            store = open_store(f"oci+http://{proxy.host}/{name}", patience)
        yield Bad(request.param, proxy, store, straight, tries, pauses)
        store.close()
        straight.close()


TRANSIENT = [
    Fault("close"),
    Fault("short"),
    Fault("stall"),
    Fault("stall-half"),
    Fault("status", status=500),
    Fault("status", status=503),
    Fault("status", status=429, headers=(("Retry-After", "3"),)),
]
# of an upload, whose answer has no body that could break
BEFORE_IT_ARRIVES = [Fault("close"), Fault("stall"), Fault("status", status=500), Fault("status", status=404)]


def name_of(fault: Fault) -> str:
    return f"{fault.kind}-{fault.status}" if fault.kind == "status" else fault.kind


@pytest.mark.parametrize("fault", TRANSIENT, ids=name_of)
def test_a_read_is_tried_again(bad: Bad, fault: Fault, tmp_path: Path) -> None:
    descriptor = bad.put(DATA, tmp_path)
    bad.proxy.faults = [replace(fault, fits=bad.is_blob)] * (bad.allowed - 1)
    assert bad.store.read(descriptor, 1000, 100_000) == DATA[1000:101_000]
    assert bad.tries() == bad.allowed
    assert len(bad.pauses) == bad.allowed - 1
    if fault.status == 429 and bad.kind == "registry":
        assert bad.pauses == [3.0, 3.0]  # as long as it asks for
    else:
        assert bad.pauses[0] > 0
        assert all(one < next_ for one, next_ in itertools.pairwise(bad.pauses))


@pytest.mark.parametrize("fault", [*TRANSIENT, Fault("trickle")], ids=name_of)
def test_a_store_that_stays_bad_is_told_and_a_later_try_works(bad: Bad, fault: Fault, tmp_path: Path) -> None:
    descriptor = bad.put(DATA, tmp_path)
    bad.proxy.always = [replace(fault, fits=bad.is_blob)]
    with pytest.raises(Unavailable, match=rf"\({bad.allowed} tries\)") as caught:
        bad.store.read(descriptor, 0, len(DATA))
    assert bad.store.url in caught.value.message
    assert caught.value.hint
    assert bad.tries() == bad.allowed
    bad.proxy.always = []
    assert bad.store.read(descriptor, 0, len(DATA)) == DATA


@pytest.mark.parametrize("fault", [*TRANSIENT, Fault("flip-sent")], ids=name_of)
def test_a_broken_upload_is_sent_again(bad: Bad, fault: Fault, tmp_path: Path) -> None:
    if fault.kind == "flip-sent" and bad.kind == "s3":
        pytest.skip("an S3 server of tests does not check what it is sent; TLS does in earnest")
    (tmp_path / "up").write_bytes(DATA)
    descriptor = Descriptor(media_type="test", digest=digest_of(DATA), size=len(DATA))
    bad.proxy.faults = [replace(fault, fits=lambda asked: asked.method == "PUT")]
    bad.store.put(descriptor, tmp_path / "up")
    assert bad.straight.has(descriptor)
    assert bad.straight.read(descriptor, 0, len(DATA)) == DATA


@pytest.mark.parametrize("fault", BEFORE_IT_ARRIVES[:3], ids=name_of)
def test_an_upload_that_stays_broken_leaves_nothing(bad: Bad, fault: Fault, tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(DATA)
    descriptor = Descriptor(media_type="test", digest=digest_of(DATA), size=len(DATA))
    bad.proxy.always = [replace(fault, fits=lambda asked: asked.method in ("PUT", "POST"))]
    with pytest.raises(Unavailable):
        bad.store.put(descriptor, tmp_path / "up")
    assert not bad.straight.has(descriptor)
    bad.proxy.always = []
    bad.store.put(descriptor, tmp_path / "up")
    assert bad.straight.read(descriptor, 0, len(DATA)) == DATA


def test_redirects_without_end(bad: Bad, tmp_path: Path) -> None:
    descriptor = bad.put(DATA, tmp_path)
    there = (("Location", f"{bad.proxy.url}/somewhere"),)
    bad.proxy.always = [Fault("status", lambda asked: asked.method == "GET", 307, there)]
    with pytest.raises(Unavailable):
        bad.store.read(descriptor, 0, 10)
    assert len(bad.proxy.asked) <= TRIES * 12


@pytest.mark.parametrize("length", [LIMIT_BYTES + 1, 64 << 20])
def test_a_manifest_that_is_too_long_is_not_read(bad: Bad, length: int) -> None:
    huge = Fault("huge", lambda asked: asked.method == "GET", 200, length=length)
    bad.proxy.always = [replace(huge, headers=(("Last-Modified", "Wed, 25 Nov 2026 09:00:00 GMT"), ("ETag", '"1"')))]
    with pytest.raises(SnapshotInvalid, match=f"bytes, more than {LIMIT_BYTES}|more than {LIMIT_BYTES} bytes"):
        bad.store.manifest("v1")


def test_who_we_are_is_not_told_to_where_a_registry_sends_us(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registries send us to a bucket for their blobs, with an address that needs no login."""
    with FaultingProxy(registry) as proxy, FaultingProxy(registry) as elsewhere:
        login = {"auths": {proxy.host: {"username": "me", "password": "secret"}}}
        (tmp_path / "config.json").write_text(json.dumps(login))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        straight = open_store(f"oci+http://{registry}/bad/redirects")
        store = open_store(f"oci+http://{proxy.host}/bad/redirects", Patience(tries=1))
        (tmp_path / "data").write_bytes(DATA)
        descriptor = Descriptor(media_type="test", digest=digest_of(DATA), size=len(DATA))
        straight.put(descriptor, tmp_path / "data")
        path = f"/v2/bad/redirects/blobs/{descriptor.digest}"
        proxy.faults = [
            Fault("status", status=401, headers=(("WWW-Authenticate", 'Basic realm="test"'),)),
            Fault("status", status=307, headers=(("Location", f"{elsewhere.url}{path}"),)),
        ]
        assert store.read(descriptor, 10, 20) == DATA[10:30]
        assert [bool(asked.authorization) for asked in proxy.asked] == [False, True]
        assert [(asked.authorization, asked.range) for asked in elsewhere.asked] == [("", "bytes=10-29")]
        store.close()
        straight.close()


def test_a_login_that_is_refused(bad: Bad, tmp_path: Path) -> None:
    descriptor = bad.put(DATA, tmp_path)
    bad.proxy.always = [Fault("status", status=403)]
    with pytest.raises(NoRights, match="refuses us") as caught:
        bad.store.read(descriptor, 0, 10)
    assert caught.value.hint
    assert bad.pauses == []  # nothing to wait for
    assert len(bad.proxy.asked) == 1


def test_no_keys_for_a_bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in S3_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    store = open_store(f"s3://{BUCKET}/none", Patience(tries=TRIES, request_timeout_s=0.3))
    with pytest.raises(NoRights, match="there are no keys") as caught:
        store.tags()
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_it_goes_404_half_way(bad: Bad, tmp_path: Path) -> None:
    descriptor = bad.put(DATA, tmp_path)
    assert bad.store.read(descriptor, 0, 10) == DATA[:10]
    bad.proxy.always = [Fault("status", bad.is_blob, 404)]
    with pytest.raises(NotFound, match=descriptor.digest):
        bad.store.read(descriptor, 10, 10)
    assert bad.pauses == []


# Whole snapshots over such stores


class Two:
    """A node that captured, and one that wants it, with a bad store between them."""

    def __init__(self, root: Path, bad: Bad) -> None:
        self.here, self.there = Node(root / "here"), Node(root / "there")
        self.bad = bad
        self.there.cache = FrameCache(root / "there/cache", connect=lambda url: bad.store)
        self.there.store = Store(root / "there/store", self.there.cache)
        template = self.here.template(b"".join(block(seed % 5) for seed in range(BLOCKS)))
        changed = {place: block(1000 + place) for place in range(BLOCKS)}
        self.content = b"".join(changed.values())
        self.snapshot = self.here.capture(template, changed, block(1) * 4, image=self.here.image())
        self.reference = transfer.tag_of(self.snapshot.digest)

    def push(self, remote: RemoteStore) -> None:
        transfer.push(self.here.store, self.here.templates, self.here.images, self.snapshot, remote)

    def pull(self) -> Snapshot:
        there = self.there
        return transfer.pull(there.store, there.templates, there.images, self.bad.store, self.reference)

    def attach(self) -> Snapshot:
        there = self.there
        return transfer.attach(there.store, there.templates, there.images, self.bad.store, self.reference)

    def nothing_is_left(self) -> None:
        assert self.there.store.snapshots() == []
        assert self.there.left_over() == []
        assert not [path for path in self.there.templates.iterdir() if path.name.endswith(".new")]
        assert not list((self.there.root / "images").glob("new-*"))


@pytest.fixture
def two(bad: Bad, tmp_path: Path) -> Iterator[Two]:
    two = Two(tmp_path, bad)
    with two.here, two.there:
        yield two


ALL = [*TRANSIENT, Fault("flip"), Fault("status", status=404)]


@pytest.mark.parametrize("fault", ALL, ids=name_of)
def test_a_pull_that_breaks_leaves_nothing_and_goes_on_later(two: Two, fault: Fault) -> None:
    two.push(two.bad.straight)
    seen = 0

    def fits(asked: Asked) -> bool:
        nonlocal seen
        seen += two.bad.is_blob(asked)
        return two.bad.is_blob(asked) and seen > 5

    two.bad.proxy.always = [replace(fault, fits=fits)]
    with pytest.raises((Unavailable, SnapshotInvalid, NotFound)):
        two.pull()
    two.nothing_is_left()
    two.bad.proxy.always = []
    assert two.pull() == two.snapshot


@pytest.mark.parametrize("fault", BEFORE_IT_ARRIVES, ids=name_of)
def test_a_push_that_breaks_names_nothing_and_goes_on_later(two: Two, fault: Fault) -> None:
    uploads = 0

    def fits(asked: Asked) -> bool:
        nonlocal uploads
        uploads += asked.method == "PUT"
        return asked.method == "PUT" and uploads > 3

    two.bad.proxy.always = [replace(fault, fits=fits)]
    with pytest.raises(PerdureError):
        two.push(two.bad.store)
    assert two.reference not in two.bad.straight.tags()
    two.bad.proxy.always = []
    two.push(two.bad.store)
    assert two.pull() == two.snapshot


@pytest.mark.parametrize("fault", ALL, ids=name_of)
def test_frames_that_do_not_come(two: Two, fault: Fault) -> None:
    two.push(two.bad.straight)
    attached = two.attach()
    descriptor = attached.memory.layers[0]
    with two.there.cache.open(descriptor, two.bad.store.url) as layer:
        two.bad.proxy.always = [replace(fault, fits=two.bad.is_blob)]
        with pytest.raises((Unavailable, SnapshotInvalid, NotFound)) as caught:
            layer.fetch(range(4))
        if fault.kind == "flip":
            assert "frame" in caught.value.message
        assert not any(layer.present(number) for number in range(4))
        two.bad.proxy.always = []
        two.bad.proxy.faults = [] if fault.status == 404 else [replace(fault, fits=two.bad.is_blob)]
        layer.fetch(range(4))
        assert b"".join(layer.frame(number) for number in range(4)) == two.content[: 64 * 4096]


def test_round_trips_are_made_side_by_side(two: Two) -> None:
    """Behind latency, what is wanted together costs one round trip, not one for each frame."""
    two.push(two.bad.straight)
    attached = two.attach()
    two.bad.proxy.latency_s = 0.3
    with two.there.cache.open(attached.memory.layers[0], two.bad.store.url) as layer:
        frames = range(0, len(layer.frames), 2)
        before = len(two.bad.proxy.asked)
        began = time.monotonic()
        layer.fetch(frames)
        took_s = time.monotonic() - began
        requests = len(two.bad.proxy.asked) - before
    assert requests == len(frames) == REQUESTS  # frames of noise: each gap is larger than what is read along
    assert took_s < len(frames) * 0.3 / 2
