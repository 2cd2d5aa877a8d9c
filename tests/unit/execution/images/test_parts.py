"""What is kept of an image beside its disk: the very bytes that a registry or an archive had."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import time
from pathlib import Path

import pytest
import zstandard

from perdure.errors import ImageInvalid, NotFound, Unsupported
from perdure.execution.images.blobs import INCOMING_KEPT_S, Blobs
from perdure.execution.images.library import ImageLibrary

from .conftest import Listing, TarMaker, docker_archive, oci_archive

pytestmark = pytest.mark.usefixtures("nothing_left")


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layers_of(library: ImageLibrary, name: str) -> list[bytes]:
    """The tars in an image's layers, each checked against what is said of it."""
    found = []
    for layer in library.parts(name).layers:
        data = layer.path.read_bytes()
        assert (layer.digest, layer.size_bytes) == (sha256(data), len(data))
        if layer.media_type.endswith("+gzip"):
            data = gzip.decompress(data)
        elif layer.media_type.endswith("+zstd"):
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        assert layer.diff_id == sha256(data)
        found.append(data)
    return found


@pytest.mark.parametrize("how", ["", "+gzip", "+zstd"])
def test_an_oci_archive_is_kept_byte_for_byte(library, tmp_path, how):
    tars = [TarMaker().bytes(), TarMaker(program=False).add("more", b"2").bytes()]
    path = oci_archive(tmp_path / "oci.tar", tars, how)
    library.load_archive(path)
    parts = library.parts("app:1")
    with tarfile.open(path) as archive:
        for blob in (parts.manifest, parts.config, *(layer.path.read_bytes() for layer in parts.layers)):
            member = archive.extractfile(f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}")
            assert member is not None and member.read() == blob
    assert layers_of(library, "app:1") == tars
    assert library.get("app:1").manifest == parts.digest == sha256(parts.manifest)


def test_a_docker_archive_gets_a_manifest_and_keeps_its_configuration(library, tmp_path):
    tars = [TarMaker().bytes(), TarMaker(program=False).add("more", b"2" * 10000).bytes()]
    history = [{"created_by": "one"}, {"created_by": "nothing", "empty_layer": True}, {"created_by": "two"}]
    path = docker_archive(tmp_path / "docker.tar", tars, {"Cmd": ["/bin/init"]}, history=history)
    with tarfile.open(path) as archive:
        listed = json.load(archive.extractfile("manifest.json"))
        config = archive.extractfile(listed[0]["Config"]).read()
    library.load_archive(path)
    parts = library.parts("app:1")
    assert parts.config == config and parts.history == history
    assert layers_of(library, "app:1") == tars
    manifest = json.loads(parts.manifest)
    assert manifest["schemaVersion"] == 2 and manifest["mediaType"] == parts.media_type
    assert manifest["config"]["digest"] == parts.config_digest == sha256(config)


def test_an_archive_of_docker_25_keeps_the_manifest_beside_it(library, tmp_path):
    """As it is where docker keeps images as registries have them: an OCI layout, and ``manifest.json`` for names."""
    tars = [TarMaker().bytes(), TarMaker(program=False).add("more", b"2").bytes()]
    with tarfile.open(oci_archive(tmp_path / "oci.tar", tars, name="")) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive.getmembers()}
    documents = {name: json.loads(data) for name, data in files.items() if data[:1] == b"{"}
    manifest = next(name for name, document in documents.items() if "config" in document and "layers" in document)
    both = TarMaker(program=False)
    for name, data in files.items():
        both.add(name, data)
    paths = {
        key: [f"blobs/sha256/{one['digest'][7:]}" for one in found]
        for key, found in {"Layers": documents[manifest]["layers"], "Config": [documents[manifest]["config"]]}.items()
    }
    listed = [{"Config": paths["Config"][0], "RepoTags": ["app:25"], "Layers": paths["Layers"]}]
    library.load_archive(both.add("manifest.json", json.dumps(listed).encode()).write(tmp_path / "both.tar"))
    assert library.parts("app:25").manifest == files[manifest]
    assert layers_of(library, "app:25") == tars


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_an_imported_image_has_one_layer_and_a_history(library, pack):
    tar = TarMaker().bytes()
    library.import_tar(io.BytesIO(pack(tar)), "a", changes=["ENV A=b", "EXPOSE 80", 'ENTRYPOINT ["/bin/init"]'])
    assert layers_of(library, "a") == [tar]
    parts = library.parts("a")
    assert parts.document["config"] == {"Entrypoint": ["/bin/init"], "Env": ["A=b"], "ExposedPorts": {"80/tcp": {}}}
    assert [one["created_by"] for one in parts.history] == ["fcrun import"]


def test_an_image_is_composed_of_layers_that_are_here_and_of_new_ones(library, tmp_path):
    base, more = TarMaker().add("a", b"1").bytes(), TarMaker(program=False).add(".wh.a").add("b", b"2").bytes()
    library.import_tar(io.BytesIO(base), "base")
    (tmp_path / "more.tar").write_bytes(more)
    parts = library.parts("base")
    document = {**parts.document, "config": {"Cmd": ["/b"]}, "history": [*parts.history, {"created_by": "me"}]}
    image = library.compose("child", [*parts.layers, tmp_path / "more.tar"], document)
    assert "b" in Listing(image.squashfs) and "a" not in Listing(image.squashfs)
    assert image.config.cmd == ["/b"]
    assert layers_of(library, "child") == [base, more]
    assert library.parts("child").layers[0] == parts.layers[0]  # kept once
    assert [one["created_by"] for one in library.parts("child").history] == ["fcrun import", "me"]
    library.remove("base")
    assert layers_of(library, "child") == [base, more]


def test_names_of_equal_disks_keep_their_own_layers(library, tmp_path):
    tars = [TarMaker().bytes()]
    library.load_archive(oci_archive(tmp_path / "1.tar", tars, "+gzip", name="a:gzip"))
    library.load_archive(oci_archive(tmp_path / "2.tar", tars, "+zstd", name="a:zstd"))
    assert library.get("a:gzip").digest == library.get("a:zstd").digest
    library.tag("a:gzip", "other")
    ends = {name: library.parts(name).layers[0].media_type[-5:] for name in ("a:gzip", "a:zstd", "other")}
    assert ends == {"a:gzip": "+gzip", "a:zstd": "+zstd", "other": "+gzip"}
    library.remove("a:gzip")
    library.remove("other")
    assert library.parts("a:zstd").layers[0].media_type.endswith("+zstd")


def test_a_disk_alone_has_no_parts(library, tmp_path):
    other = ImageLibrary(tmp_path / "other")
    image = other.import_tar(io.BytesIO(TarMaker().bytes()), "a")
    config, disk = other.export(image.digest)

    def fill(folder: Path) -> None:
        (folder / "config.json").write_bytes(config.read_bytes())
        (folder / "image.squashfs").write_bytes(disk.read_bytes())

    library.adopt(image.digest, fill)
    with pytest.raises(Unsupported, match="came with a snapshot"):
        library.parts(image.digest)
    with pytest.raises(NotFound):
        library.parts("nothing")


def test_a_library_whose_blobs_were_lost_still_runs_its_images(library, tmp_path):
    library.import_tar(io.BytesIO(TarMaker().bytes()), "a")
    lost = Blobs(tmp_path / "images").path(library.get("a").manifest)
    kept = lost.read_bytes()
    lost.unlink()
    library.sweep()
    assert library.get("a").name == "a:latest"
    with pytest.raises((NotFound, ImageInvalid)):
        library.parts("a")
    library.remove("a")
    assert kept


def test_what_a_killed_maker_left_is_swept_after_a_day(tmp_path):
    blobs = Blobs(tmp_path)
    with blobs.making():
        digest = blobs.add(b"whole")
        with blobs.part(sha256(b"half")) as coming:
            assert coming is not None
            coming[0].write(b"ha")
        nameless = tmp_path / "incoming" / "0123456789abcdef.part"
        nameless.write_bytes(b"?")
        blobs.sweep([])  # nothing goes while somebody makes an image
        assert nameless.exists()
    blobs.sweep([])
    assert not nameless.exists()
    assert blobs.find(digest) and len(blobs.incoming()) == 2
    for path in blobs.incoming():
        os.utime(path, (0, time.time() - INCOMING_KEPT_S - 60))
    blobs.sweep([])
    assert blobs.incoming() == [] and blobs.find(digest) is None
