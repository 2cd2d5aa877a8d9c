"""What a user gets from ``fcrun`` for input that is no good: status 125, a clear word, and nothing lost or left."""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.client.node import NodeClient
from perdure.errors import Unavailable
from perdure.host.paths import Home
from perdure.testing import smalldisks
from perdure.testing.commands import Fcrun


def fcrun(home: Home, *argv: str, stdin: bytes = b"") -> tuple[int, str]:
    """Exit status and stderr."""
    status, _, said = Fcrun(home)(*argv, stdin=stdin)
    return status, said


def tar(*members: tarfile.TarInfo) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as file:
        for name in ("bin", "etc"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            file.addfile(folder)
        for member in members:
            file.addfile(member, io.BytesIO(bytes(member.size)))
    return packed.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    one = tarfile.TarInfo(name)
    one.type, one.linkname, one.size, one.mode = kind, link, size, 0o755
    return one


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    if shutil.which("mksquashfs") is None:
        pytest.skip("mksquashfs is not installed")
    root = tmp_path_factory.mktemp("bad-input")
    with ended(Home(root / "home", root / "cache").make()) as home:
        yield home


def stored(home: Home) -> list[Path]:
    return sorted(path for path in home.images.rglob("*") if path.is_file() and path.name != "lock")


@contextlib.contextmanager
def ended(home: Home) -> Iterator[Home]:
    """Its node ends afterwards, if a command started it."""
    try:
        yield home
    finally:
        with contextlib.suppress(Unavailable):
            NodeClient(home).shutdown()


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (b"", "empty"),
        (b"this is no archive" * 100, "the archive is not a readable tar"),
        (tar(member("../outside", size=1)), "../outside"),
        (tar(member("/etc/../../outside", size=1)), "outside"),
        (tar(member("etc/hard", tarfile.LNKTYPE, "../../../etc/shadow")), "etc/hard"),
        (tar(member("etc/hard", tarfile.LNKTYPE, "/etc/shadow")), "etc/hard"),
        (tar(member("etc/sda", tarfile.BLKTYPE)), "etc/sda is a device"),
    ],
)
def test_import_refuses_tricks(home: Home, tmp_path: Path, archive: bytes, words: str) -> None:
    path = tmp_path / "root.tar"
    path.write_bytes(archive)
    before = stored(home)
    status, said = fcrun(home, "import", str(path), "bad")
    assert (status, said.startswith("fcrun: ")) == (125, True), said
    assert words in said
    assert stored(home) == before
    assert fcrun(home, "run", "bad", "true")[0] == 125


def test_import_from_a_pipe_that_breaks_off(home: Home) -> None:
    whole = tar(member("etc/large", size=1 << 20))
    status, said = fcrun(home, "import", "-", "bad", stdin=whole[: len(whole) // 2])
    assert status == 125 and said.startswith("fcrun: "), said
    assert not list(home.run.glob("upload-*"))


def test_no_space(tmp_path: Path) -> None:
    """On a file system of 8 MiB that is really full."""
    if shutil.which("mksquashfs") is None:
        pytest.skip("mksquashfs is not installed")
    with smalldisks.mounted(tmp_path / "small", 8) as small, ended(Home(small / "home", tmp_path / "cache")) as home:
        archive = tmp_path / "root.tar"
        archive.write_bytes(tar(member("etc/passwd"), member("etc/large", size=16 << 20)))
        status, said = fcrun(home, "import", str(archive), "large")
        assert status == 125
        assert "no space left" in said and "internal error" not in said
        assert not [path for path in home.images.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20]
        assert not list(home.run.glob("upload-*"))
        assert fcrun(home, "images")[0] == 0  # the node lives on


def test_a_tampered_asset(home: Home, tmp_path: Path) -> None:
    cache = Home.find().cache
    if not (cache / "assets.json").exists():
        pytest.skip("no assets are set up: make setup")
    shutil.copytree(cache, tmp_path / "cache", symlinks=True)
    own = Home(tmp_path / "home", tmp_path / "cache").make()
    (kernel,) = (path for path in (tmp_path / "cache").glob("kernel/*/vmlinux") if in_use(cache, path))
    with kernel.open("r+b") as file:
        file.seek(kernel.stat().st_size // 2)
        file.write(b"tampered")
    status, said = fcrun(own, "setup")
    assert status == 125
    assert str(kernel) in said and "fcrun setup" in said


def in_use(cache: Path, copy: Path) -> bool:
    return str(Path(*copy.parts[-3:])) in (cache / "assets.json").read_text()


def test_an_id_that_cannot_be_written_leaves_no_sandbox(home: Home, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", dereference=True) as file:
        file.add("/bin/true", "bin/true")
    assert fcrun(home, "import", "-", "tiny", stdin=packed.getvalue())[0] == 0
    there = tmp_path / "id"
    there.write_text("another's")
    status, said = fcrun(home, "run", "--cidfile", str(there), "tiny", "true")
    assert status == 125 and "File exists" in said
    assert there.read_text() == "another's"
    assert NodeClient(home).list() == []
