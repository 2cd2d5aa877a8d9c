"""The library: names, digests, what survives a kill, who may work at the same time."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard

from perdure.errors import Conflict, ImageInvalid, InvalidValue, NotFound, ProtocolError
from perdure.execution.images.library import ImageLibrary
from perdure.formats.references import full_name

from .conftest import Listing, TarMaker, docker_archive, oci_archive

pytestmark = pytest.mark.usefixtures("nothing_left")


def tar(marker: bytes = b"") -> bytes:
    return TarMaker().add("marker", marker).bytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress, lzma.compress, bz2.compress])
def test_import_of_plain_and_compressed_tars_is_the_same_image(library, tmp_path, pack):
    (tmp_path / "root").write_bytes(pack(tar()))
    from_path = library.import_tar(tmp_path / "root", "a")
    from_stream = library.import_tar(io.BytesIO(tar()), "b")
    assert from_path.digest == from_stream.digest
    assert [image.name for image in library.list()] == ["a:latest", "b:latest"]
    assert from_path.size_bytes == from_path.squashfs.stat().st_size > 0


def test_import_from_a_pipe(library):
    reading, writing = os.pipe()
    data = tar(b"m" * 200_000)

    def feed() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(reading, "rb") as pipe:
        image = library.import_tar(pipe, "piped")
    thread.join()
    assert Listing(image.squashfs).cat("marker") == b"m" * 200_000


def test_the_digest_covers_disk_and_configuration(library):
    plain = library.import_tar(io.BytesIO(tar()), "a")
    changed = library.import_tar(io.BytesIO(tar()), "b", changes=["CMD bin/init"])
    other = library.import_tar(io.BytesIO(tar(b"x")), "c")
    assert len({plain.digest, changed.digest, other.digest}) == 3
    assert changed.config.cmd == ["/bin/sh", "-c", "bin/init"]


def test_get_by_name_and_by_digest(library):
    image = library.import_tar(io.BytesIO(tar()), "tools/app:v1")
    for name in ("tools/app:v1", image.digest, image.digest[:15], image.digest.removeprefix("sha256:")[:6]):
        assert library.get(name).digest == image.digest
    assert library.get("tools/app:v1") == image
    for name in ("tools/app", "other", "sha256:", "", "0" * 64, "../images", "A B"):
        with pytest.raises(NotFound) as caught:
            library.get(name)
        assert "fcrun import" in caught.value.hint


def test_a_short_digest_of_two_images_is_a_conflict(library):
    images = [library.import_tar(io.BytesIO(tar(b"%d" % number)), f"n{number}") for number in range(17)]
    firsts = [image.digest[7] for image in images]
    twice = next(first for first in firsts if firsts.count(first) > 1)
    with pytest.raises(Conflict, match="digests that start with"):
        library.get(f"sha256:{twice}")


def test_a_name_moves_to_the_newer_image_and_the_older_stays_without_it(library):
    old = library.import_tar(io.BytesIO(tar(b"1")), "app")
    new = library.import_tar(io.BytesIO(tar(b"2")), "app")
    assert library.get("app").digest == new.digest
    assert {(image.name, image.digest) for image in library.list()} == {("app:latest", new.digest), ("", old.digest)}
    library.import_tar(io.BytesIO(tar(b"1")), "app")
    assert library.get("app").digest == old.digest


def test_remove(library, tmp_path):
    image = library.import_tar(io.BytesIO(tar()), "a")
    library.import_tar(io.BytesIO(tar()), "b")
    with pytest.raises(Conflict, match="several names"):
        library.remove(image.digest)
    assert library.remove("a") == ["a:latest"]
    assert image.squashfs.exists()
    assert library.remove(image.digest[:20]) == ["b:latest", image.digest]
    assert not image.squashfs.parent.exists()
    with pytest.raises(NotFound):
        library.remove("a")
    assert library.list() == []


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("python", "python:latest"),
        ("python:3.11-slim", "python:3.11-slim"),
        ("docker.io/library/python", "python:latest"),
        ("localhost:5000/a/b_c/d:V1", "localhost:5000/a/b_c/d:V1"),
        ("Registry.example/a", "Registry.example/a:latest"),
    ],
)
def test_names(given, full):
    assert full_name(given) == full


@pytest.mark.parametrize("name", ["", "UPPER", "a b", "a:", "../a", "/a", "a//b", "-a", "a:b:c", "x" * 300, "a\n"])
def test_names_that_are_none(library, name):
    with pytest.raises(InvalidValue):
        library.import_tar(io.BytesIO(tar()), name)


def test_docker_archives_old_and_new(library, tmp_path):
    config = {
        "Entrypoint": ["/bin/init"],
        "Cmd": None,
        "Env": ["PATH=/bin", "EMPTY=", "EQ=a=b"],
        "WorkingDir": "/work",
        "User": "app:users",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "StopSignal": "SIGQUIT",
        "Labels": {"a": "b"},
        "Volumes": {"/data": {}},
    }
    path = docker_archive(tmp_path / "saved.tar", [tar()], config, tags=["app:1", "docker.io/library/other:2"])
    image, other = library.load_archive(path)
    assert (image.name, other.name, other.digest) == ("app:1", "other:2", image.digest)
    assert {each.name for each in library.list()} == {"app:1", "other:2"}
    read = image.config
    assert (read.entrypoint, read.cmd, read.cwd, read.user) == (["/bin/init"], [], "/work", "app:users")
    assert read.env == {"PATH": "/bin", "EMPTY": "", "EQ": "a=b"}
    assert (read.exposed_ports, read.stop_signal) == (["53/udp", "80/tcp"], "SIGQUIT")
    assert (read.labels, read.volumes) == ({"a": "b"}, ["/data"])
    assert library.get("other:2").config == read
    compressed = io.BytesIO(gzip.compress(path.read_bytes()))
    assert library.load_archive(compressed)[0].digest == image.digest


@pytest.mark.parametrize("how", ["", "+gzip", "+zstd"])
def test_oci_archives(library, tmp_path, how):
    layers = [tar(), TarMaker(program=False).add(".wh.marker").add("new", b"1").bytes()]
    (image,) = library.load_archive(oci_archive(tmp_path / "oci.tar", layers, how, name="app:1"))
    assert image.name == "app:1"
    assert image.config.cmd == ["/bin/init"]
    assert set(Listing(image.squashfs).lines) == {"", "bin", "bin/init", "new"}
    saved = docker_archive(tmp_path / "d.tar", layers, {"Cmd": ["/bin/init"]}, tags=[])
    assert library.load_archive(saved)[0].digest == image.digest


def test_an_archive_without_a_name_is_known_by_its_digest_or_by_the_given_name(library, tmp_path):
    path = docker_archive(tmp_path / "saved.tar", [tar()], tags=[])
    (image,) = library.load_archive(path)
    assert image.name == ""
    assert library.get(image.digest[:19]).digest == image.digest
    assert library.load_archive(path, name="mine")[0].name == "mine:latest"


def test_a_damaged_index_is_said_and_not_overwritten(library, tmp_path):
    library.import_tar(io.BytesIO(tar()), "a")
    index = tmp_path / "images/index.json"
    before = index.read_bytes()
    for text in (b"{", b'{"version": 2}'):
        index.write_bytes(text)
        with pytest.raises(ProtocolError):
            library.list()
        with pytest.raises(ProtocolError):
            library.import_tar(io.BytesIO(tar(b"2")), "b")
        assert index.read_bytes() == text
    index.write_bytes(before)


def test_many_at_once(library):
    with ThreadPoolExecutor(6) as pool:
        images = list(pool.map(lambda n: library.import_tar(io.BytesIO(tar(b"%d" % (n % 3))), f"n{n}"), range(12)))
    assert len({image.digest for image in images}) == 3
    assert {image.name for image in library.list()} == {f"n{number}:latest" for number in range(12)}


_IMPORTER = """
import sys
from pathlib import Path
from perdure.execution.images.library import ImageLibrary
def progress(what, done, total):
    print(what, flush=True)
ImageLibrary(Path(sys.argv[1])).import_tar(sys.stdin.buffer, "killed", progress=progress)
"""


@pytest.mark.parametrize("when", ["spool", "reading", "packing"])
def test_kill_minus_nine_leaves_nothing_that_the_next_import_does_not_sweep(library, tmp_path, when):
    folder = tmp_path / "images"
    kept = library.import_tar(io.BytesIO(tar()), "kept")
    process = subprocess.Popen(
        [sys.executable, "-c", _IMPORTER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False
    )
    assert process.stdin is not None and process.stdout is not None
    maker = TarMaker()
    for number in range(60):
        maker.add(f"noise{number}", os.urandom(1 << 18))
    data = maker.bytes()
    if when == "spool":
        process.stdin.write(data[: 1 << 20])
        process.stdin.flush()
        deadline = time.monotonic() + 30
        while not list(folder.glob("new-*/spool")):
            assert time.monotonic() < deadline
            os.sched_yield()
    else:
        process.stdin.write(data)
        process.stdin.close()
        while process.stdout.readline().strip().decode() != when:
            assert process.poll() is None
    held = list(folder.glob("new-*"))
    library.sweep()
    assert list(folder.glob("new-*")) == held  # a living maker is left alone
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    assert held
    assert library.get("kept").digest == kept.digest
    library.import_tar(io.BytesIO(tar(b"next")), "next")
    assert not list(folder.glob("new-*"))


def test_a_folder_that_the_index_does_not_list_is_swept(library, tmp_path):
    image = library.import_tar(io.BytesIO(tar()), "a")
    orphan = tmp_path / "images" / ("0" * 64)
    orphan.mkdir()
    (orphan / "image.squashfs").write_bytes(b"x")
    library.sweep()
    assert not orphan.exists()
    assert library.get("a") == image


def test_an_interrupt_while_packing_ends_the_packer_and_leaves_nothing(library, tmp_path):
    def progress(what: str, done: int, total: int) -> None:
        if what == "packing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.import_tar(io.BytesIO(tar(b"m" * 100_000)), "a", progress=progress)
    assert library.list() == []


def test_progress_goes_from_nothing_to_all(library):
    seen: list[tuple[str, int, int]] = []
    library.import_tar(io.BytesIO(tar(b"m" * 5000)), "a", progress=lambda *step: seen.append(step))
    assert seen[0] == ("reading", 0, 0)
    last = {what: (done, total) for what, done, total in seen}
    assert list(last) == ["reading", "packing", "keeping"]
    assert last["packing"][0] == last["packing"][1] > 5000 and last["keeping"][0] == last["keeping"][1]


def test_a_missing_squashfs_is_said(library):
    image = library.import_tar(io.BytesIO(tar()), "a")
    image.squashfs.unlink()
    with pytest.raises(ProtocolError, match="damaged"):
        library.get("a")
    assert [each.name for each in library.list()] == ["a:latest"]
    assert library.remove("a")


def test_nothing_happens_before_the_first_image(tmp_path):
    library = ImageLibrary(tmp_path / "images")
    assert library.list() == []
    assert not (tmp_path / "images").exists()


def test_a_bad_change_is_refused_before_anything_is_read(library):
    with pytest.raises(InvalidValue, match="RUN cannot be changed"):
        library.import_tar(io.BytesIO(tar()), "a", changes=["RUN make"])
    with pytest.raises(ImageInvalid):
        library.import_tar(io.BytesIO(b"nothing"), "a", changes=["USER app"])
