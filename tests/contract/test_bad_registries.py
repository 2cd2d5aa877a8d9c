"""Pulls from registries that break, lie or stall: what is said, and that nothing of an image is left."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from perdure.errors import ImageInvalid, NoRights, NoSpace, NotFound, PerdureError, Unavailable
from perdure.testing.images import (
    ARCHITECTURE,
    CONFIG,
    LAYER,
    MANIFEST,
    Answer,
    FakeRegistry,
    HandMade,
    Request,
    digest_of,
    root_layer,
)
from perdure.testing.pulls import Pulls, layers, replace


def test_it_serves_as_registries_do(pulls: Pulls, fake: FakeRegistry) -> None:
    assert pulls.pull(f"{fake.host}/app:v1") == fake.tags["v1"]["digest"]
    assert pulls.library.get(f"{fake.host}/app:v1").config.cmd == ["/bin/init"]


def test_nobody_is_there(pulls: Pulls) -> None:
    pulls.refused("127.0.0.1:1/app:v1", Unavailable, "127.0.0.1:1/app", "refused", "2 tries")


# -- bytes that are not those that were promised -----------------------------------------------------------------------


def test_another_manifest_than_the_one_that_was_asked_for(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    other = made.image([root_layer({"other": b"1"})])
    digest = fake.tags["v1"]["digest"]
    replace(fake, f"manifests/{digest}", (200, {"Content-Type": MANIFEST}, made.blobs[other["digest"]]))
    pulls.refused(f"{fake.host}/app@{digest}", ImageInvalid, f"asked for {digest}", other["digest"])
    fake.tags["v1"] = made.index([(fake.tags["v1"], f"linux/{ARCHITECTURE}")])
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, f"names {digest}", other["digest"])


@pytest.mark.parametrize("number", [0, 1])
def test_another_layer(pulls: Pulls, made: HandMade, fake: FakeRegistry, number: int) -> None:
    digest = layers(made, fake)[number]
    data = bytearray(made.blobs[digest])
    data[len(data) // 2] ^= 1
    made.blobs[digest] = bytes(data)
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, digest, digest_of(bytes(data)), "damaged or changed")
    assert not [path for path in pulls.library.incoming_files() if digest[7:] in path.name]  # the next starts anew


def test_another_configuration(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    digest = json.loads(made.blobs[fake.tags["v1"]["digest"]])["config"]["digest"]
    made.blobs[digest] = made.blobs[digest].replace(b"/bin/init", b"/bin/evil")
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, digest, "damaged or changed")


@pytest.mark.parametrize("how", ["shorter", "breaks off", "longer"])
def test_a_layer_of_another_length(pulls: Pulls, made: HandMade, fake: FakeRegistry, how: str) -> None:
    digest = layers(made, fake)[1]
    data = made.blobs[digest]
    if how == "breaks off":
        replace(fake, digest, (206, {"Content-Range": "bytes 0-", "Content-Length": str(len(data))}, data[:-9]))
    else:
        made.blobs[digest] = data[:-9] if how == "shorter" else data + bytes(9)
    if how == "longer":  # more than was asked for is not read, and what was asked for is right
        assert pulls.pull(f"{fake.host}/app:v1")
    else:
        pulls.refused(f"{fake.host}/app:v1", Unavailable, "bytes", "2 tries")


def test_a_layer_that_unpacks_to_another_tar(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    """The blob is as promised, its content is not."""
    other = made.image([root_layer()], "")
    manifest = json.loads(made.blobs[other["digest"]])
    manifest["layers"] = [made.blob(gzip.compress(root_layer({"evil": b"1"})), f"{LAYER}+gzip")]
    fake.tags["v1"] = made.document(manifest, MANIFEST)
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, "its digest is", "promises")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda config: config["rootfs"]["diff_ids"].pop(), "one diff_id for each of 2 layers"),
        (lambda config: config.pop("rootfs"), "one diff_id for each of 2 layers"),
        (lambda config: config.update(architecture="s390x"), "is for linux/s390x"),
        (lambda config: config.update(os="windows"), "is for windows/"),
        (lambda config: config.update(config={"Cmd": "text"}), "malformed"),
    ],
)
def test_a_configuration_that_cannot_be(
    pulls: Pulls, made: HandMade, fake: FakeRegistry, change: Callable[[dict[str, Any]], object], word: str
) -> None:
    manifest = json.loads(made.blobs[fake.tags["v1"]["digest"]])
    config = json.loads(made.blobs[manifest["config"]["digest"]])
    change(config)
    manifest["config"] = made.document(config, CONFIG)
    fake.tags["v1"] = made.document(manifest, MANIFEST)
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, word)


# -- documents that are no image ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "media_type", "word"),
    [
        (b"no JSON", MANIFEST, "malformed"),
        (b"[]", MANIFEST, "malformed"),
        (b'{"config": 5, "layers": []}', MANIFEST, "malformed"),
        (b'{"schemaVersion": 2}', "text/html", "unknown kind 'text/html'"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "application/vnd.docker.distribution.manifest.v1+json", "schema 1"),
        (b"[" * 100_000, MANIFEST, "malformed"),
        (b'{"mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}', "", "no matching manifest"),
    ],
)
def test_what_is_no_manifest(pulls: Pulls, fake: FakeRegistry, document: bytes, media_type: str, word: str) -> None:
    replace(fake, "manifests/", (200, {"Content-Type": media_type}, document))
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, f"{fake.host}/app", word)


def test_a_huge_manifest(pulls: Pulls, fake: FakeRegistry) -> None:
    replace(fake, "manifests/", (200, {"Content-Type": MANIFEST}, b" " * (5 << 20)))
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, "more than 4194304 bytes")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}, "is a foreign one"),
        ({"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar"}, "is a foreign one"),
        ({"urls": ["http://127.0.0.1:1/blob"]}, "is a foreign one"),
        ({"mediaType": f"{LAYER}+encrypted"}, "unknown kind"),
        ({"digest": "sha256:../../etc/passwd"}, "of no known kind"),
        ({"digest": "md5:d41d8cd98f00b204e9800998ecf8427e"}, "of no known kind"),
        ({"size": -1}, "of -1 bytes"),
    ],
)
def test_layers_that_cannot_be_brought(
    pulls: Pulls, made: HandMade, fake: FakeRegistry, change: dict[str, Any], word: str
) -> None:
    manifest = json.loads(made.blobs[fake.tags["v1"]["digest"]])
    manifest["layers"][1].update(change)
    fake.tags["v1"] = made.document(manifest, MANIFEST)
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, word)
    assert not [request for request in fake.asked if "/blobs/" in request.path]  # nothing was fetched for nothing


def test_an_artifact_that_is_no_image(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    manifest = json.loads(made.blobs[fake.tags["v1"]["digest"]])
    manifest["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    fake.tags["v1"] = made.document(manifest, MANIFEST)
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, "is no image", "helm")


def test_a_layer_larger_than_the_disk(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    manifest = json.loads(made.blobs[fake.tags["v1"]["digest"]])
    manifest["layers"][1]["size"] = 1 << 60
    fake.tags["v1"] = made.document(manifest, MANIFEST)
    pulls.refused(f"{fake.host}/app:v1", NoSpace, "to be fetched")


def test_indexes_in_indexes_without_end(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    for _ in range(8):
        fake.tags["v1"] = made.index([(fake.tags["v1"], f"linux/{ARCHITECTURE}")])
    pulls.refused(f"{fake.host}/app:v1", ImageInvalid, "without end")


# -- answers that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["manifests/", "blobs/"])
@pytest.mark.parametrize(
    ("status", "kind", "word"),
    [
        (401, NoRights, "Log in first: fcrun login"),
        (403, NoRights, "refuses us"),
        (404, NotFound, "has no"),
        (418, Unavailable, "answered with 418"),
        (429, Unavailable, "answered with 429"),
        (500, Unavailable, "answered with 500"),
        (503, Unavailable, "answered with 503"),
    ],
)
def test_statuses(
    pulls: Pulls, fake: FakeRegistry, part: str, status: int, kind: type[PerdureError], word: str
) -> None:
    replace(fake, part, (status, {}, b'{"errors": [{"code": "SOME"}]}'))
    pulls.refused(f"{fake.host}/app:v1", kind, word, f"{fake.host}/app")


@pytest.mark.parametrize(("after", "least_s"), [({}, 0.0), ({"Retry-After": "3"}, 3.0)])
def test_too_many_requests_for_a_moment(
    pulls: Pulls, fake: FakeRegistry, after: dict[str, str], least_s: float
) -> None:
    replace(fake, "manifests/", (429, after, b"slowly"), times=1)
    assert pulls.pull(f"{fake.host}/app:v1")
    assert len(pulls.pauses) == 1 and least_s <= pulls.pauses[0] <= 5.0


@pytest.mark.parametrize("part", ["manifests/", "blobs/"])
def test_redirects_without_end(pulls: Pulls, fake: FakeRegistry, part: str) -> None:
    here = f"http://{fake.host}/v2/app/{part}again"
    replace(fake, part, (307, {"Location": here}, b""))
    pulls.refused(f"{fake.host}/app:v1", Unavailable, "more than 5 redirects")


def test_another_host_is_not_told_who_we_are(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    with FakeRegistry(made) as other:

        def answered(request: Request) -> Answer | None:
            if request.headers.get("Authorization") != "Basic bWU6c2VjcmV0":
                return 401, {"WWW-Authenticate": 'Basic realm="x"'}, b""
            if "/blobs/" in request.path:
                return 307, {"Location": f"http://{other.host}{request.path}"}, b""
            return None

        fake.answer = answered
        assert pulls.pull(f"{fake.host}/app:v1", login=("me", "secret"))
        assert other.asked and not [one for one in other.asked if "Authorization" in one.headers]
        pulls.library.remove(f"{fake.host}/app:v1")
        pulls.refused(f"{fake.host}/app:v1", NoRights, "refuses us", login=("me", "wrong"))


def test_a_registry_that_knows_no_ranges(pulls: Pulls, made: HandMade, fake: FakeRegistry) -> None:
    image = made.image([root_layer({"noise": os.urandom(9 << 20)})], "")
    fake.tags["v1"] = image

    def whole(request: Request) -> Answer | None:
        data = made.blobs.get(request.path.rpartition("/")[2])
        return (200, {}, data) if data is not None and "/blobs/" in request.path else None

    fake.answer = whole
    assert pulls.pull(f"{fake.host}/app:v1") == image["digest"]
