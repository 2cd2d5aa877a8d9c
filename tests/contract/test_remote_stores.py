"""What every store beyond this machine does, whatever it is: a folder, an S3 server, an OCI registry."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from perdure.errors import InvalidValue, NotFound, SnapshotInvalid
from perdure.execution.registry.contract import RemoteStore
from perdure.execution.snapshots.stores import open_store
from perdure.formats.manifest import MANIFEST, Descriptor, digest_of

_numbers = iter(range(1 << 30))


@pytest.fixture
def store(url: str) -> Iterator[RemoteStore]:
    store = open_store(url)
    yield store
    store.close()


@pytest.fixture
def blob(tmp_path: Path) -> Callable[[bytes], tuple[Descriptor, Path]]:
    def make(data: bytes) -> tuple[Descriptor, Path]:
        path = tmp_path / f"blob-{next(_numbers)}"
        path.write_bytes(data)
        return Descriptor(media_type="application/vnd.perdure.test", digest=digest_of(data), size=len(data)), path

    return make


Blob = Callable[[bytes], tuple[Descriptor, Path]]
DATA = random.Random(1).randbytes(300_000)


def manifest_of(descriptor: Descriptor) -> tuple[bytes, Descriptor]:
    """A manifest that registries take, with this blob as config and layer."""
    entry = f'{{"digest":"{descriptor.digest}","mediaType":"{descriptor.media_type}","size":{descriptor.size}}}'
    data = f'{{"config":{entry},"layers":[{entry}],"mediaType":"{MANIFEST}","schemaVersion":2}}'.encode()
    return data, Descriptor(media_type=MANIFEST, digest=digest_of(data), size=len(data))


def test_a_blob_comes_back_whole_and_in_ranges(store: RemoteStore, blob: Blob) -> None:
    descriptor, path = blob(DATA)
    assert not store.has(descriptor)
    store.put(descriptor, path)
    assert store.has(descriptor)
    assert store.read(descriptor, 0, len(DATA)) == DATA
    for offset, length in ((0, 1), (1, 1), (65_535, 2), (len(DATA) - 1, 1), (12_345, 200_000), (7, 0)):
        assert store.read(descriptor, offset, length) == DATA[offset : offset + length]


def test_its_url_opens_it_again(store: RemoteStore, blob: Blob) -> None:
    descriptor, path = blob(DATA)
    store.put(descriptor, path)
    again = open_store(store.url)
    assert again.url == store.url
    assert again.read(descriptor, 5, 10) == DATA[5:15]
    again.close()


def test_the_second_put_of_a_blob_changes_nothing(store: RemoteStore, blob: Blob) -> None:
    descriptor, path = blob(b"once")
    store.put(descriptor, path)
    path.unlink()  # so nothing can be read from it
    store.put(descriptor, path)
    assert store.read(descriptor, 0, 4) == b"once"


def test_a_large_blob(store: RemoteStore, blob: Blob) -> None:
    """Larger than what clients and servers take in one piece."""
    data = DATA * 100
    descriptor, path = blob(data)
    store.put(descriptor, path)
    assert store.has(descriptor)
    assert store.read(descriptor, len(data) - 10, 10) == data[-10:]
    assert store.read(descriptor, 17 << 20, 1 << 20) == data[17 << 20 : 18 << 20]


def test_a_blob_of_another_length_is_not_that_blob(store: RemoteStore, blob: Blob) -> None:
    descriptor, path = blob(b"12345")
    store.put(descriptor, path)
    longer = Descriptor(media_type=descriptor.media_type, digest=descriptor.digest, size=6)
    assert not store.has(longer)


def test_what_is_not_there(store: RemoteStore, blob: Blob) -> None:
    descriptor, _ = blob(b"never put")
    with pytest.raises(NotFound, match=descriptor.digest):
        store.read(descriptor, 0, 3)
    with pytest.raises(NotFound, match="has no tag v1"):
        store.manifest("v1")
    with pytest.raises(NotFound, match="manifest"):
        store.manifest(descriptor.digest)
    assert store.tags() == []


def test_tags_name_manifests_and_move(store: RemoteStore, blob: Blob) -> None:
    first, second = blob(b"first"), blob(b"second")
    for descriptor, path in (first, second):
        store.put(descriptor, path)
    data, manifest = manifest_of(first[0])
    store.tag("v1", data, manifest)
    store.tag("Latest_2.0-x", data, manifest)
    assert store.manifest("v1") == data
    assert store.manifest(manifest.digest) == data
    other, other_manifest = manifest_of(second[0])
    store.tag("v1", other, other_manifest)
    assert store.manifest("v1") == other
    assert store.manifest("Latest_2.0-x") == data
    assert store.manifest(manifest.digest) == data
    assert store.tags() == ["Latest_2.0-x", "v1"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a b", "ä", "x" * 129, "a\n", "sha256"])
def test_names_with_bad_characters(store: RemoteStore, blob: Blob, name: str) -> None:
    descriptor, path = blob(b"config")
    store.put(descriptor, path)
    data, manifest = manifest_of(descriptor)
    if name == "sha256":  # a tag like any other
        store.tag(name, data, manifest)
        assert store.manifest(name) == data
        return
    with pytest.raises(InvalidValue, match="is not a tag"):
        store.tag(name, data, manifest)
    with pytest.raises(InvalidValue, match="is not a tag"):
        store.manifest(name)
    assert store.tags() == []


@pytest.mark.parametrize("digest", ["sha256:../../../etc/passwd", "sha512:" + "0" * 64, "sha256:" + "A" * 64, "x"])
def test_digests_that_are_none(store: RemoteStore, digest: str) -> None:
    descriptor = Descriptor(media_type="x", digest=digest, size=1)
    with pytest.raises(SnapshotInvalid, match="is not a sha256 digest"):
        store.read(descriptor, 0, 1)
    with pytest.raises(SnapshotInvalid, match="is not a sha256 digest"):
        store.has(descriptor)


def test_many_threads_at_once(store: RemoteStore, blob: Blob) -> None:
    """Some put the same blob, some their own; all read all."""
    blobs = [blob(DATA + bytes([number // 2])) for number in range(16)]
    start = threading.Barrier(16)

    def one(number: int) -> None:
        start.wait(20)
        descriptor, path = blobs[number]
        store.put(descriptor, path)
        for offset in range(0, len(DATA), 50_000):
            assert store.read(descriptor, offset, 50_000) == DATA[offset : offset + 50_000]
        data, manifest = manifest_of(descriptor)
        store.tag(f"tag-{number}", data, manifest)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(16)))
    assert len(store.tags()) == 16
    for descriptor, _ in blobs:
        assert store.read(descriptor, 0, descriptor.size)[:-1] == DATA


@pytest.mark.parametrize(
    "wrong",
    ["", "relative/path", "http://host/x", "s3://", "s3://UPPER/x", "s3://bucket/a b", "oci://host", "oci://host/UPPER",
     "oci://user@host/x", "oci:///x", "oci://host/../x", "s3://bucket/a//b"],
)  # fmt: skip
def test_urls_that_name_no_store(wrong: str) -> None:
    with pytest.raises(InvalidValue):
        open_store(wrong)


def test_a_folder_is_an_oci_image_layout(tmp_path: Path, blob: Blob) -> None:
    store = open_store(str(tmp_path / "layout"))
    descriptor, path = blob(b"config")
    store.put(descriptor, path)
    data, manifest = manifest_of(descriptor)
    store.tag("v1", data, manifest)
    assert (tmp_path / "layout/oci-layout").read_bytes() == b'{"imageLayoutVersion":"1.0.0"}'
    (listed,) = json.loads((tmp_path / "layout/index.json").read_bytes())["manifests"]
    named = {"org.opencontainers.image.ref.name": "v1"}
    assert listed == {"mediaType": MANIFEST, "digest": manifest.digest, "size": len(data), "annotations": named}
    assert (tmp_path / "layout/blobs" / manifest.digest.replace(":", "/")).read_bytes() == data
