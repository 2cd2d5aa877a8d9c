"""Layers applied in order, seen in the squashfs that comes out."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from perdure.errors import ImageInvalid

from .conftest import Listing, TarMaker, docker_archive


@pytest.fixture
def merged(library, tmp_path, nothing_left):
    def run(*layers: TarMaker) -> Listing:
        archive = docker_archive(tmp_path / "saved.tar", [layer.bytes() for layer in layers])
        return Listing(library.load_archive(archive)[0].squashfs)

    return run


def layer() -> TarMaker:
    return TarMaker(program=False)


def test_a_later_layer_replaces_files_and_keeps_the_rest(merged):
    tree = merged(TarMaker().add("etc/a", b"old").add("etc/b", b"kept"), layer().add("etc/a", b"new", mode=0o600))
    assert tree.cat("etc/a") == b"new"
    assert tree.mode("etc/a") == "-rw-------"
    assert tree.cat("etc/b") == b"kept"


def test_a_folder_over_a_folder_changes_its_attributes_and_keeps_its_files(merged):
    tree = merged(TarMaker().folder("d").add("d/f", b"1"), layer().folder("d", 0o1777))
    assert tree.mode("d") == "drwxrwxrwt"
    assert tree.cat("d/f") == b"1"


def test_a_file_replaces_a_folder_and_a_folder_replaces_a_link(merged):
    first = TarMaker().add("d/f", b"1").symlink("l", "d")
    tree = merged(first, layer().add("d", b"file").folder("l").add("l/new", b"2"))
    assert tree.cat("d") == b"file"
    assert "d/f" not in tree
    assert tree.mode("l") == "drwxr-xr-x"


@pytest.mark.parametrize("last", [True, False], ids=["after", "before"])
def test_a_whiteout_hides_lower_layers_only(merged, last):
    second = layer()
    if not last:
        second.add("d/.wh.gone")
    second.add("d/gone/fresh", b"2")
    if last:
        second.add("d/.wh.gone")
    tree = merged(TarMaker().add("d/gone/old", b"1").add("d/stays", b"1"), second)
    assert tree.cat("d/gone/fresh") == b"2"
    assert "d/gone/old" not in tree
    assert "d/stays" in tree
    assert not [path for path in tree.lines if ".wh." in path]


def test_a_whiteout_of_a_file_and_of_a_link_and_of_nothing(merged):
    first = TarMaker().add("a", b"1").symlink("l", "bin").hardlink("h", "a")
    tree = merged(first, layer().add(".wh.a").add(".wh.l").add(".wh.never"))
    assert "a" not in tree
    assert "l" not in tree
    assert "bin/init" in tree  # what the link pointed to is not touched
    assert tree.cat("h") == b"1"


@pytest.mark.parametrize("last", [True, False], ids=["after", "before"])
def test_an_opaque_folder_keeps_only_its_own_layer(merged, last):
    second = layer()
    if not last:
        second.add("d/.wh..wh..opq")
    second.add("d/e/new", b"2")
    if last:
        second.add("d/.wh..wh..opq")
    tree = merged(TarMaker().add("d/e/old", b"1").add("d/f", b"1"), second)
    assert {path for path in tree.lines if path.startswith("d/")} == {"d/e", "d/e/new"}


def test_a_hard_link_of_the_same_layer_hidden_by_name_lives_on_under_the_other(merged):
    tree = merged(TarMaker().add("a", b"1").hardlink("b", "a"), layer().hardlink("c", "b").add(".wh.a"))
    assert tree.cat("b") == tree.cat("c") == b"1"
    assert "a" not in tree


def test_members_written_through_links_stay_inside(merged):
    first = (
        TarMaker().folder("usr/lib").symlink("lib", "usr/lib").symlink("out", "../../../../etc").symlink("abs", "/x/y")
    )
    tree = merged(first, layer().add("lib/so", b"1").add("out/passwd", b"2").add("abs/made", b"3"))
    assert tree.cat("usr/lib/so") == b"1"
    assert tree.lines["lib"][4] == "usr/lib"
    assert tree.cat("etc/passwd") == b"2"
    assert tree.cat("x/y/made") == b"3"


def test_devices_below_dev_are_left_out(merged):
    """A guest's own /dev hides them; images of debootstrap and the like carry them."""
    first = TarMaker().folder("dev").add("dev/null", kind=tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3)
    tree = merged(first.add("dev/console", b""), layer().add("./dev/console", kind=tarfile.CHRTYPE))
    assert [path for path in tree.lines if path.startswith("dev")] == ["dev"]


def test_absolute_names_in_layers_are_below_the_root(merged):
    tree = merged(TarMaker(), layer().add("/layers/app/file", b"1").hardlink("/two", "/layers/app/file"))
    assert tree.cat("layers/app/file") == tree.cat("two") == b"1"


def test_the_same_layer_twice_is_a_link_in_the_archive(merged):
    same = layer().add("f", b"1")
    tree = merged(TarMaker(), same, layer().add(".wh.f"), same)
    assert tree.cat("f") == b"1"


def test_owners_modes_times_links_and_fifos(library, tmp_path):
    maker = TarMaker().folder("./", 0o711).add("su", b"x", mode=0o6755, uid=1000, gid=4_000_000_000)
    maker.symlink("dangling", "/nowhere/at/all").add("fifo", kind=tarfile.FIFOTYPE, mode=0o622)
    maker.add("old", mtime=-5).add("far", mtime=2**40).hardlink("su2", "su")
    image = library.import_tar(maker.write(tmp_path / "root.tar"), "app")
    tree = Listing(image.squashfs)
    assert tree.lines["su"][:4] == ("-rwsr-sr-x", 1000, 4_000_000_000, 1)
    assert tree.lines["dangling"][4] == "/nowhere/at/all"
    assert tree.mode("fifo") == "prw--w--w-"
    assert tree.mode("") == "drwx--x--x"
    assert tree.cat("su2") == b"x"


def extracted(squashfs: Path, folder: Path) -> Path:
    subprocess.run(["unsquashfs", "-q", "-n", "-no-xattrs", "-d", str(folder), str(squashfs)], check=True)
    return folder


def test_hard_links_are_one_inode(library, tmp_path):
    maker = TarMaker().add("a", b"data").hardlink("sub/b", "a").hardlink("sub/c", "./sub/b")
    image = library.import_tar(maker.write(tmp_path / "root.tar"), "app")
    root = extracted(image.squashfs, tmp_path / "out")
    assert (root / "a").stat().st_nlink == 3
    assert (root / "a").samefile(root / "sub/c")


def test_long_and_odd_names(library, tmp_path):
    long = "/".join(["d" * 200] * 4 + ["f" * 255])
    odd = "odd \N{SNOWMAN} '\" \\ =\n name"
    raw = b"raw-\xff\xfe".decode("utf-8", "surrogateescape")
    maker = TarMaker().add(long, b"1").add(odd, b"2").add(raw, b"3").symlink("ln", "t" * 4000)
    root = extracted(library.import_tar(maker.write(tmp_path / "root.tar"), "app").squashfs, tmp_path / "out")
    assert (root / long).read_bytes() == b"1"
    assert (root / odd).read_bytes() == b"2"
    assert (Path(os.fsdecode(os.fsencode(root) + b"/raw-\xff\xfe"))).read_bytes() == b"3"
    assert os.readlink(root / "ln") == "t" * 4000  # noqa: PTH115


def test_xattrs_are_kept_but_none_that_speak_to_overlayfs(library, tmp_path):
    capability = b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)
    headers = {
        "SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.user.binary": b"\xff\x80=\n".decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.system.posix_acl_access": "junk",
        "comment": "dropped",
    }
    image = library.import_tar(
        TarMaker().add("ping", b"x", pax_headers=headers, mode=0o755).write(tmp_path / "root.tar"), "app"
    )
    folder = tmp_path / "out"
    subprocess.run(["unsquashfs", "-q", "-n", "-d", str(folder), str(image.squashfs)], check=True)
    names = set(os.listxattr(folder / "ping"))
    assert "user.binary" in names
    assert os.getxattr(folder / "ping", "user.binary") == b"\xff\x80=\n"
    assert not {name for name in names if "overlay" in name or "posix" in name}
    if os.geteuid() == 0:
        assert os.getxattr(folder / "ping", "security.capability") == capability


@pytest.mark.parametrize(
    "form", ["gnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1", "posix --sparse-version=1.0"]
)
def test_sparse_files_of_gnu_tar_stay_sparse(library, tmp_path, form):
    root = tmp_path / "root"
    root.mkdir()
    (root / "init").write_bytes(Path("/bin/true").read_bytes())
    (root / "init").chmod(0o755)
    with (root / "holes").open("wb") as file:
        file.truncate(3 << 30)
        for offset in (1 << 20, 1 << 30, (3 << 30) - 4096):
            file.seek(offset)
            file.write(b"data at %d" % offset)
    archive = tmp_path / "root.tar"
    name, *options = form.split()
    subprocess.run(["tar", "-C", str(root), "-S", f"--format={name}", *options, "-cf", str(archive), "."], check=True)
    out = extracted(library.import_tar(archive, "app").squashfs, tmp_path / "out")
    with (out / "holes").open("rb") as file:
        assert file.seek(0, os.SEEK_END) == 3 << 30
        for offset in (1 << 20, 1 << 30, (3 << 30) - 4096):
            file.seek(offset)
            assert file.read(20).rstrip(b"\0") == b"data at %d" % offset
    assert (out / "holes").stat().st_blocks * 512 < 1 << 20


def test_a_layer_whose_last_block_is_not_filled_up(library, tmp_path):
    """As ``umoci insert`` writes them. Only a digest tells that nothing was cut off."""
    data = TarMaker().add("f", b"x" * 700).bytes()
    short = data[: data.rindex(b"x") + 1]
    image = library.load_archive(docker_archive(tmp_path / "saved.tar", [short]))[0]
    assert Listing(image.squashfs).cat("f") == b"x" * 700
    with pytest.raises(ImageInvalid, match="unexpected end of data"):
        library.load_archive(docker_archive(tmp_path / "cut.tar", [short[:-1]]))
    (tmp_path / "root.tar").write_bytes(short)
    with pytest.raises(ImageInvalid, match="unexpected end of data"):
        library.import_tar(tmp_path / "root.tar", "app")
