"""From an image's packed layers to a root file system that a sandbox can use, beside ``umoci unpack``.

The image is Debian in three layers, gzip as registries have them: the base, Python over it, and tools with a removal
over that, each the difference that ``umoci repack`` finds. Both sides begin with these layers on this disk. umoci ends
with a folder and the digests of its files; ours with a squashfs and the kept layers, verified and synced. Speed is the
bytes of the layers' tars in a second, for both.
"""

from __future__ import annotations

import gzip
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from report import MEGABYTE, Report

from perdure.execution.images.library import ImageLibrary
from perdure.execution.images.packages import bootstrap

ROUNDS = 5
LAYERS: tuple[tuple[str, ...], ...] = ((), ("python3",), ("python3", "git", "perl", "curl"))
REMOVED = ("usr/share/doc", "usr/share/common-licenses")  # by the last layer
BASELINE = "image unpack: umoci unpack"
OURS = "image unpack: fcrun load"


@dataclass(frozen=True)
class Speeds:
    """Bytes a second."""

    umoci: float
    ours: float


def add(report: Report) -> None:
    """Nothing where this machine lacks what it needs."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("umoci", "mmdebstrap", "mksquashfs"))):
        print("  image unpack is not measured: it needs root, umoci, mmdebstrap and mksquashfs", file=sys.stderr)
        return
    speeds = measure()
    report.add(BASELINE, speeds.umoci / MEGABYTE, "MB/s")
    report.add(OURS, speeds.ours / MEGABYTE, "MB/s", over=BASELINE, goal="ratio >= 0.7")


def measure() -> Speeds:
    """Medians of rounds in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        layout = _image(folder)
        archive = folder / "image.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(layout, ".")
        size_bytes = _tar_bytes(layout)
        theirs, ours = [], []
        for number in range(ROUNDS):
            target = folder / f"umoci-{number}"
            began = time.monotonic()
            _umoci("unpack", "--image", f"{layout}:image", str(target))
            theirs.append(time.monotonic() - began)
            shutil.rmtree(target)
            library = folder / f"library-{number}"
            began = time.monotonic()
            ImageLibrary(library).load_archive(archive)
            ours.append(time.monotonic() - began)
            shutil.rmtree(library)
    return Speeds(size_bytes / statistics.median(theirs), size_bytes / statistics.median(ours))


def _image(folder: Path) -> Path:
    layout, bundle, root = folder / "layout", folder / "bundle", folder / "root.tar"
    _umoci("init", "--layout", str(layout))
    _umoci("new", "--image", f"{layout}:image")
    _umoci("unpack", "--image", f"{layout}:image", str(bundle))
    for number, packages in enumerate(LAYERS):
        bootstrap(root, packages)
        extract = ["tar", "-C", str(bundle / "rootfs"), "-xpf", str(root), "--xattrs", "--xattrs-include=*"]
        subprocess.run([*extract, "--numeric-owner"], check=True)
        if number == len(LAYERS) - 1:
            for path in REMOVED:
                shutil.rmtree(bundle / "rootfs" / path, ignore_errors=True)
        _umoci("repack", "--image", f"{layout}:image", "--refresh-bundle", str(bundle))
        root.unlink()
    shutil.rmtree(bundle)
    return layout


def _tar_bytes(layout: Path) -> int:
    count = 0
    for blob in (layout / "blobs/sha256").iterdir():
        with blob.open("rb") as file:
            if file.read(2) != b"\x1f\x8b":
                continue
        with gzip.open(blob) as layer:
            while data := layer.read(1 << 20):
                count += len(data)
    return count


def _umoci(*argv: str) -> None:
    subprocess.run(["umoci", *argv], check=True, capture_output=True)


if __name__ == "__main__":
    from report import HEAD

    print(HEAD)
    add(Report())
