"""``fcrun pull, push`` and ``--pull`` with a real registry, and skopeo as the other one that uses it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient, ensure_running
from perdure.errors import PerdureError
from perdure.host.paths import Home
from perdure.testing.images import (
    ARCHITECTURE,
    DOCKER_MANIFEST,
    OTHER_ARCHITECTURE,
    HandMade,
    digest_of,
    root_layer,
    tar,
)
from perdure.testing.registrynodes import Node, emptied, place, publish, raw, skopeo


@pytest.fixture
def node(pulling_node: Node) -> Iterator[Node]:
    with emptied(pulling_node) as node:
        yield node


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
    listed = json.loads(skopeo("list-tags", "--tls-verify=false", f"docker://{repository}"))["Tags"]
    assert sorted(listed) == ["one", "two"]  # in the order of its folder
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


def test_errors_of_the_library_are_those_of_the_client(node: Node) -> None:
    with pytest.raises(PerdureError) as caught:
        node.client.registries.pull("UPPER/..")
    assert caught.value.code == "invalid-value"
