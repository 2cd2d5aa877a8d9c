"""Images as the tools of others make them: Debian packages through mmdebstrap, archives that skopeo and umoci write."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from perdure.errors import ImageInvalid, InvalidValue, Unsupported
from perdure.execution.images.image import Image
from perdure.execution.images.library import ImageLibrary


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def content(image: Image, path: str) -> bytes:
    return subprocess.run(["unsquashfs", "-cat", str(image.squashfs), path], capture_output=True, check=True).stdout


def paths(image: Image) -> set[str]:
    listing = subprocess.run(
        ["unsquashfs", "-ls", "-d", "", str(image.squashfs)], capture_output=True, check=True, text=True
    )
    return set(listing.stdout.split("\n"))


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageLibrary, Image]:
    """Debian with Python, built once for this module: it takes some ten seconds."""
    library = ImageLibrary(tmp_path_factory.mktemp("images"))
    steps: list[str] = []
    image = library.build_from_packages(
        "python", ["python3-minimal", "libpython3-stdlib"], progress=lambda what, done, total: steps.append(what)
    )
    assert "packing" in steps
    return library, image


@needs("mmdebstrap")
@pytest.mark.timeout(600)
def test_debian_packages_become_an_image_without_docs_caches_and_devices(debian):
    _, image = debian
    found = paths(image)
    assert "/usr/bin/python3" in found
    assert "/bin" in found
    assert "/usr/share/doc/bash/copyright" in found
    for gone in ("/usr/share/man/", "/var/cache/apt/archives", "/dev/", "/var/log/"):
        assert not [path for path in found if path.startswith(gone)]
    assert not [path for path in found if "99mmdebstrap" in path or path.endswith(("_Packages", "_InRelease"))]
    assert image.config.cmd == ["/bin/sh"]
    assert "/usr/bin" in image.config.env["PATH"]
    assert image.size_bytes < 100 << 20


@needs("mmdebstrap")
@pytest.mark.timeout(600)
def test_pythons_library_comes_compiled_for_the_times_of_its_sources(debian):
    _, image = debian
    compiled = [path for path in paths(image) if "/asyncio/__pycache__/base_events." in path]
    assert len(compiled) == 1
    recorded = struct.unpack("<4sIII", content(image, compiled[0])[:16])[2]  # PEP 552: magic, flags, time, size
    listing = subprocess.run(
        ["unsquashfs", "-lls", "-d", "", "-UTC", str(image.squashfs), "usr/lib/python3.11/asyncio/base_events.py"],
        capture_output=True,
        check=False,
        text=True,
        env={"PATH": "/usr/bin:/bin", "TZ": "UTC"},
    ).stdout
    if not listing:
        pytest.skip("this unsquashfs cannot list one path")
    import time

    assert time.strftime("%Y-%m-%d %H:%M", time.gmtime(recorded)) in listing


@needs("mmdebstrap")
def test_packages_that_are_none(tmp_path):
    library = ImageLibrary(tmp_path)
    for package in ("", "-y", "a b", "x;rm"):
        with pytest.raises(InvalidValue):
            library.build_from_packages("bad", [package])
    with pytest.raises(Unsupported, match="no source for nosuchsuite"):
        library.build_from_packages("bad", [], suite="nosuchsuite")
    assert library.list() == []


@needs("mmdebstrap")
@pytest.mark.timeout(600)
def test_a_package_that_does_not_exist_is_told_in_apts_words(tmp_path):
    library = ImageLibrary(tmp_path)
    steps: list[str] = []
    with pytest.raises(ImageInvalid) as caught:
        library.build_from_packages(
            "bad", ["no-such-package-anywhere"], progress=lambda what, done, total: steps.append(what)
        )
    assert steps and not [step for step in steps if "downloading" in step or "extracting" in step]  # it is told at once
    assert "no-such-package-anywhere" in caught.value.message + caught.value.details["output"]
    assert library.list() == []
    assert {path.name for path in Path(tmp_path).iterdir()} <= {"lock", "index.json", "blobs", "incoming"}


@pytest.fixture
def umoci_layout(tmp_path: Path) -> Path:
    """An OCI layout of three layers, the second with a whiteout, written by umoci."""
    layout = tmp_path / "layout"

    def umoci(*arguments: str) -> None:
        subprocess.run(["umoci", *arguments], check=True, capture_output=True)

    umoci("init", "--layout", str(layout))
    umoci("new", "--image", f"{layout}:v1")
    for number in range(3):
        bundle = tmp_path / f"bundle{number}"
        rootless = [] if Path("/proc/self").owner() == "root" else ["--rootless"]
        umoci("unpack", *rootless, "--image", f"{layout}:v1", str(bundle))
        root = bundle / "rootfs"
        if number == 0:
            (root / "bin").mkdir()
            shutil.copy("/bin/true", root / "bin/true")
            (root / "old").write_text("old")
            (root / "dir").mkdir()
            (root / "dir/lower").write_text("lower")
        elif number == 1:
            (root / "old").unlink()
            (root / "new").write_text("new")
        else:
            shutil.rmtree(root / "dir")
            (root / "dir").mkdir()
            (root / "dir/upper").hardlink_to(root / "new")
        umoci("repack", "--image", f"{layout}:v1", str(bundle))
    umoci("config", "--image", f"{layout}:v1", "--config.entrypoint", "/bin/true", "--config.env", "A=b")
    return layout


@needs("umoci")
@needs("skopeo")
@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_archives_that_skopeo_writes(umoci_layout, tmp_path, form):
    archive = tmp_path / "image.tar"
    name = "tools/app:v1"
    subprocess.run(
        ["skopeo", "copy", "--insecure-policy", f"oci:{umoci_layout}:v1", f"{form}:{archive}:{name}"],
        check=True,
        capture_output=True,
    )
    (image,) = ImageLibrary(tmp_path / "images").load_archive(archive)
    assert image.name == name
    assert image.config.entrypoint == ["/bin/true"]
    assert image.config.env["A"] == "b"
    found = paths(image)
    assert {"/bin/true", "/new", "/dir/upper"} <= found
    assert not {"/old", "/dir/lower"} & found
    assert content(image, "dir/upper") == b"new"
