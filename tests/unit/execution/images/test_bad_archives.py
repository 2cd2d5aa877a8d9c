"""Whatever is wrong with an archive is named, and nothing of it stays in the library."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import tarfile
from collections import namedtuple
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.errors import ImageInvalid, NoSpace, NotFound, PerdureError, Unsupported
from perdure.execution.images.library import ImageLibrary

from .conftest import ARCHITECTURE, Listing, TarMaker, docker_archive, elf, oci_archive

pytestmark = pytest.mark.usefixtures("nothing_left")
OTHER = {"amd64": ("arm64", 183), "arm64": ("amd64", 62)}[ARCHITECTURE]


@pytest.fixture
def refused(library, tmp_path):
    """Import bytes as a root file system; the message of the refusal, which must have a hint."""

    def run(data: bytes | TarMaker) -> str:
        path = tmp_path / "bad.tar"
        path.write_bytes(data if isinstance(data, bytes) else data.bytes())
        with pytest.raises(ImageInvalid) as caught:
            library.import_tar(path, "bad")
        assert caught.value.hint
        assert library.list() == []
        return caught.value.message

    return run


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda t: t.add("../etc/passwd", b"x"), "../etc/passwd: the name ../etc/passwd has '..'"),
        (lambda t: t.add("a/../../b", b"x"), "a/../../b"),
        (lambda t: t.add("/etc/passwd", b"x"), "absolute name /etc/passwd"),
        (lambda t: t.hardlink("a", "/etc/passwd"), "a: the absolute name /etc/passwd"),
        (lambda t: t.hardlink("a", "../../etc/passwd"), "a: the name ../../etc/passwd has '..'"),
        (lambda t: t.hardlink("a", "not/there"), "a: nothing is at its target"),
        (lambda t: t.hardlink("a", "missing"), "a: hard link to missing, which is not there"),
        (lambda t: t.hardlink("a", "bin"), "hard link to bin, which is a folder"),
        (lambda t: t.hardlink("a", "a"), "a: hard link to a, which is not there"),
        (lambda t: t.hardlink("a", "."), "which is a folder"),
        (lambda t: t.add("srv/sda", kind=tarfile.BLKTYPE), "srv/sda is a device"),
        (lambda t: t.add("device/null", kind=tarfile.CHRTYPE), "device/null is a device"),
        (lambda t: t.add("dev/../srv/null", kind=tarfile.CHRTYPE), "has '..'"),
        (lambda t: t.add("odd", kind=b"M"), "unknown kind"),
        (lambda t: t.add("bin/init/below", b"x"), "init on its path is not a folder"),
        (lambda t: t.symlink("l", "l").add("l/x", b"x"), "too many symbolic links"),
        (lambda t: t.symlink("empty", ""), "target is empty"),
        (lambda t: t.symlink("long", "x" * 5000), "too long"),
        (lambda t: t.add("n" * 256), "no file system can hold this name"),
        (lambda t: t.add("d/" * 600 + "f"), "folders deep"),
        (lambda t: t.add("./", b"x"), "stands for the root"),
        (lambda t: t.add(".wh."), "a whiteout of nothing"),
        (lambda t: t.add("who", uid=2**32), "owner id"),
    ],
)
def test_tricks_name_the_member(refused, make, said):
    maker = TarMaker()
    make(maker)
    assert said in refused(maker)


def test_a_write_through_a_link_to_the_host_is_inside(library, tmp_path):
    victim = tmp_path / "victim"
    maker = TarMaker().symlink("out", str(victim)).add("out/pwned", b"x")
    image = library.import_tar(maker.write(tmp_path / "root.tar"), "app")
    assert not victim.exists()
    assert Listing(image.squashfs).cat(str(victim / "pwned").lstrip("/")) == b"x"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty file"),
        (b"no tar at all", "not a readable tar"),
        (os.urandom(4096), "not a readable tar"),
        (gzip.compress(b"no tar at all"), "not a readable tar"),
        (bytes(10240), "no executable program"),
        (b"\x28\xb5\x2f\xfd" + b"junk" * 10, "compressed data"),
    ],
    ids=["empty", "text", "noise", "gzipped text", "zeros", "bad zstd"],
)
def test_what_is_no_tar(refused, data, said):
    assert said in refused(data)


def test_what_is_no_root_file_system(refused):
    assert "not a root file system" in refused(TarMaker(program=False).add("README", b"hello"))
    script = TarMaker(program=False).add("bin/sh", b"#!/bin/false\n", mode=0o755)
    assert "no executable program" in refused(script)
    library = TarMaker(program=False).add("lib/libc.so", elf(), mode=0o644)
    assert "no executable program" in refused(library)


def test_one_static_program_is_enough(library, tmp_path):
    image = library.import_tar(TarMaker(program=False).add("app", elf(), mode=0o755).write(tmp_path / "t"), "scratch")
    assert list(Listing(image.squashfs).lines) == ["", "app"]


def test_programs_of_another_machine(refused):
    assert "this machine is" in refused(TarMaker(program=False).add("app", elf(OTHER[1]), mode=0o755))


def test_an_image_archive_given_to_import_says_load(refused, tmp_path):
    with pytest.raises(ImageInvalid) as caught:
        ImageLibrary(tmp_path / "images").import_tar(docker_archive(tmp_path / "saved", [TarMaker().bytes()]), "x")
    assert "fcrun load" in caught.value.hint


def test_a_root_file_system_given_to_load_says_import(library, tmp_path):
    with pytest.raises(ImageInvalid) as caught:
        library.load_archive(TarMaker().write(tmp_path / "root.tar"))
    assert "fcrun import" in caught.value.hint


def big() -> bytes:
    return TarMaker().add("a", os.urandom(3000)).add("b", os.urandom(2048)).add("c/d", b"e" * 700).bytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress, lzma.compress, bz2.compress])
def test_truncated_at_many_places(library, tmp_path, pack):
    whole = big()
    end = len(whole.rstrip(b"\0")) if pack is bytes else len(pack(whole)) - 1
    data = pack(whole)
    for length in [0, 1, 511, 512, 513, *range(600, end, 487), end // 512 * 512]:
        with pytest.raises(ImageInvalid):
            library.import_tar(io.BytesIO(data[: min(length, end)]), "cut")
    assert library.list() == []
    assert library.import_tar(io.BytesIO(data), "whole").name == "whole:latest"


def test_a_damaged_header_in_the_middle_is_not_the_end(refused):
    data = bytearray(big())
    data[1024 + 512 + 3072 + 100] ^= 0xFF  # the header of b: tarfile alone would end there without a word
    assert "damaged header" in refused(bytes(data))


def test_garbage_after_a_compressed_stream_but_not_padding(library, tmp_path):
    data = gzip.compress(TarMaker().bytes())
    with pytest.raises(ImageInvalid, match="garbage"):
        library.import_tar(io.BytesIO(data + b"garbage!"), "bad")
    middle = len(TarMaker().bytes()) // 2
    parts = gzip.compress(TarMaker().bytes()[:middle]) + gzip.compress(TarMaker().bytes()[middle:])
    assert library.import_tar(io.BytesIO(parts + bytes(100)), "two-streams")


def test_bombs(library, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2 << 30, 1 << 30, 10 << 20))
    zeros = gzip.compress(TarMaker().add("zeros", bytes(11 << 20)).bytes())
    with pytest.raises(NoSpace, match="10 MiB that are free"):
        library.import_tar(io.BytesIO(zeros), "bomb")
    with pytest.raises(NoSpace, match="decompressed"):
        library.load_archive(io.BytesIO(zeros))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_claims_gigabytes(refused, kind):
    liar = tarfile.TarInfo("liar")
    liar.type, liar.size = kind, 5 << 30
    assert "claims" in refused(TarMaker().bytes()[:1024] + liar.tobuf(tarfile.GNU_FORMAT) + bytes(2048))


def assert_empty(folder: Path) -> None:
    """No image is there, and nothing of one."""
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert left <= {"lock", "index.json", "incoming/lock"}


def test_a_full_disk(library, tmp_path, monkeypatch):
    """A real one: RLIMIT_FSIZE would kill mksquashfs, so a small tmpfs is what stands for it."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    import subprocess

    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=True)
    try:
        noise = TarMaker().add("noise", os.urandom(2 << 20)).write(tmp_path / "noise.tar")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("u", "free")(1 << 30))
        full = ImageLibrary(small)
        with pytest.raises(NoSpace):
            full.import_tar(noise, "noise")
        with pytest.raises(NoSpace):
            full.import_tar(io.BytesIO(noise.read_bytes()), "noise")
        assert_empty(small)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_without_the_packer(library, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="mksquashfs"):
        library.import_tar(TarMaker().write(tmp_path / "root.tar"), "app")


def test_a_path_that_is_not_there(library, tmp_path):
    with pytest.raises(NotFound):
        library.import_tar(tmp_path / "missing.tar", "app")


@pytest.mark.parametrize("what", ["layer 0", "layer 1", "config", "manifest", "index"])
@pytest.mark.parametrize("damage", ["no", "flipped"])
def test_an_oci_archive_that_lacks_or_belies_a_blob(library, tmp_path, what, damage):
    layers = [TarMaker().bytes(), TarMaker(program=False).add("f", b"1").bytes()]
    path = oci_archive(tmp_path / "oci.tar", layers, damage=f"{damage} {what}")
    with pytest.raises(ImageInvalid) as caught:
        library.load_archive(path)
    assert caught.value.hint
    assert "missing" in caught.value.message if damage == "no" else caught.value.message
    assert library.list() == []


def test_a_layer_whose_tar_is_not_the_promised_one(library, tmp_path):
    path = docker_archive(tmp_path / "a.tar", [TarMaker().bytes()], rootfs={"diff_ids": [f"sha256:{'0' * 64}"]})
    with pytest.raises(ImageInvalid, match="promises"):
        library.load_archive(path)
    path = docker_archive(tmp_path / "b.tar", [TarMaker().bytes()], rootfs={"diff_ids": []})
    with pytest.raises(ImageInvalid, match="diff_id"):
        library.load_archive(path)


def test_an_image_for_another_machine(library, tmp_path):
    for path in (
        docker_archive(tmp_path / "a.tar", [TarMaker().bytes()], architecture=OTHER[0]),
        oci_archive(tmp_path / "b.tar", [TarMaker().bytes()], architecture=OTHER[0]),
        oci_archive(tmp_path / "c.tar", [TarMaker().bytes()], platform={"os": "linux", "architecture": OTHER[0]}),
        docker_archive(tmp_path / "d.tar", [TarMaker().bytes()], os="windows"),
    ):
        with pytest.raises(ImageInvalid, match="this machine is linux/") as caught:
            library.load_archive(path)
        assert f"--platform linux/{ARCHITECTURE}" in caught.value.hint


@pytest.mark.parametrize(
    "media_type",
    ["application/vnd.oci.image.layer.v1.tar+encrypted", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", ""],
)
def test_layers_of_unknown_kinds(library, tmp_path, media_type):
    path = oci_archive(tmp_path / "oci.tar", [TarMaker().bytes()], media_type=media_type or "text/plain")
    with pytest.raises(ImageInvalid, match="unknown kind"):
        library.load_archive(path)


def test_a_layer_compressed_with_what_nobody_knows(library, tmp_path):
    layer = b"\x04\x22\x4d\x18" + TarMaker().bytes()  # the magic of an lz4 frame
    with pytest.raises(ImageInvalid, match="not a readable tar"):
        library.load_archive(docker_archive(tmp_path / "a.tar", [layer]))


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (b"{", "malformed"),
        (b"{}", "malformed"),
        (b"[]", "no image"),
        (b'[{"Config": "x.json", "Layers": []}]', "x.json is missing"),
        (b'[{"Config": 5, "Layers": []}]', "malformed"),
        (b"[" * 100_000, "malformed"),
    ],
)
def test_manifests_that_are_none(library, tmp_path, manifest, said):
    path = TarMaker(program=False).add("manifest.json", manifest).write(tmp_path / "a.tar")
    with pytest.raises(ImageInvalid, match=said):
        library.load_archive(path)


def test_configurations_of_wrong_types(library, tmp_path):
    for config in ({"Env": "A=1"}, {"Cmd": [1]}, {"Labels": ["a"]}, {"ExposedPorts": 80}):
        with pytest.raises(ImageInvalid, match="malformed"):
            library.load_archive(docker_archive(tmp_path / "a.tar", [TarMaker().bytes()], config=config))


def test_two_images_where_one_is_bad_load_neither(library, tmp_path):
    good = docker_archive(tmp_path / "good.tar", [TarMaker().bytes()])
    outer = TarMaker(program=False)
    with tarfile.open(good) as tar:
        for member in tar:
            file = tar.extractfile(member)
            data = file.read() if file else b""
            if member.name == "manifest.json":
                first = json.loads(data)[0]
                data = json.dumps([first, {**first, "Layers": [*first["Layers"], "gone/layer.tar"]}]).encode()
            outer.add(member.name, data, kind=member.type)
    with pytest.raises(ImageInvalid, match="missing"):
        library.load_archive(outer.write(tmp_path / "two.tar"))
    assert library.list() == []


@settings(max_examples=2 * settings().max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_an_error_of_ours_or_harmless(tmp_path_factory, monkeypatch, data):
    """Flip bytes of a tar with every kind of header: no other exception, no hang, nothing left."""
    maker = TarMaker().add("x" * 300, b"1" * 600, pax_headers={"SCHILY.xattr.user.a": "b"}).symlink("l", "y" * 200)
    damaged = bytearray(maker.hardlink("h", "bin/init").folder("d").add("n", b"2").bytes())
    used = len(bytes(damaged).rstrip(b"\0"))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, used - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # most flips end at a header's checksum: mend it, so that the rest is reached
        for block in range(0, used, 512):
            if damaged[block + 257 : block + 262] == b"ustar":
                damaged[block + 148 : block + 156] = b" " * 8
                damaged[block + 148 : block + 156] = b"%06o\0 " % sum(damaged[block : block + 512])
    folder = tmp_path_factory.mktemp("fuzz")
    library = ImageLibrary(folder)
    try:
        library.import_tar(io.BytesIO(bytes(damaged)), "fuzz")
    except PerdureError as error:
        assert error.hint
        assert_empty(folder)
