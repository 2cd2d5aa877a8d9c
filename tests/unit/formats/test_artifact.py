"""Manifests of templates, images and working sets: what was written is read, anything else is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import PerdureError, SnapshotInvalid
from perdure.formats import artifact
from perdure.formats.artifact import IMAGE, TEMPLATE, Artifact
from perdure.formats.manifest import LIMIT_BYTES, Descriptor

hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
descriptors = st.builds(
    Descriptor,
    media_type=st.sampled_from(["application/a", "application/b"]),
    digest=hexes.map("sha256:{}".format),
    size=st.integers(0, 1 << 50),
)
artifacts = st.builds(
    Artifact,
    kind=st.sampled_from([TEMPLATE, IMAGE]),
    config=descriptors,
    layers=st.lists(descriptors, max_size=5),
    subject=st.none() | descriptors,
)


@given(artifacts)
def test_round_trip(value: Artifact) -> None:
    data = artifact.encode(value)
    assert artifact.decode(data, value.kind) == value
    assert artifact.encode(value) == data
    held = json.loads(data)
    assert (held["schemaVersion"], held["artifactType"]) == (2, value.kind)
    assert data == json.dumps(held, sort_keys=True, separators=(",", ":")).encode()


@given(artifacts)
def test_another_kind_is_refused(value: Artifact) -> None:
    with pytest.raises(SnapshotInvalid, match="not of"):
        artifact.decode(artifact.encode(value), IMAGE if value.kind == TEMPLATE else TEMPLATE)


@given(st.binary(max_size=300) | artifacts.map(artifact.encode).flatmap(lambda data: st.builds(
    lambda place, byte: data[: place % len(data)] + bytes([byte]) + data[place % len(data) + 1 :],
    st.integers(min_value=0), st.integers(0, 255),
)))  # fmt: skip
def test_damage_is_refused_or_is_another_artifact(data: bytes) -> None:
    try:
        found = artifact.decode(data, IMAGE)
    except PerdureError:
        return
    assert found.kind == IMAGE  # its digest, which names it, is another one


def test_one_is_one() -> None:
    layer = Descriptor(media_type="a", digest="sha256:" + "0" * 64, size=1)
    held = Artifact(kind=IMAGE, config=layer, layers=[layer, layer])
    with pytest.raises(SnapshotInvalid, match="2 blobs of type a, not one"):
        held.one("a")
    with pytest.raises(SnapshotInvalid, match="0 blobs of type b, not one"):
        held.one("b")
    assert held.all("a") == [layer, layer]


def test_what_no_manifest_may_be() -> None:
    with pytest.raises(SnapshotInvalid, match="limit"):
        artifact.decode(b" " * (LIMIT_BYTES + 1), IMAGE)
    negative = Descriptor(media_type="a", digest="sha256:" + "0" * 64, size=-1)
    with pytest.raises(SnapshotInvalid, match="-1 bytes"):
        artifact.decode(artifact.encode(Artifact(kind=IMAGE, config=negative, layers=[])), IMAGE)
    path = Descriptor(media_type="a", digest="sha256:../../x", size=1)
    with pytest.raises(SnapshotInvalid, match="not a sha256 digest"):
        artifact.decode(artifact.encode(Artifact(kind=IMAGE, config=path, layers=[])), IMAGE)
