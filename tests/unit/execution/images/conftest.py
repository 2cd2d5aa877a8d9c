"""Archives made in the test, and a look at what became of them: through ``unsquashfs``, which is not our code."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import re
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from perdure.execution.images.library import ImageLibrary

MACHINE = {"x86_64": 62, "aarch64": 183}[platform.machine()]
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def elf(machine: int = MACHINE) -> bytes:
    """The header of an ELF executable, which is what the library looks at (elf(5))."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + (2).to_bytes(2, "little") + machine.to_bytes(2, "little") + bytes(44)


class TarMaker:
    """A tar, one member after the other. ``program`` adds what makes it a root file system."""

    def __init__(self, *, program: bool = True) -> None:
        self._bytes = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._bytes, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        if program:
            self.add("bin/init", elf(), mode=0o755)

    def add(self, name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, **fields: Any) -> TarMaker:
        member = tarfile.TarInfo(name)
        member.type = kind
        member.size = len(data)
        member.mtime = 1_600_000_000
        for field, value in fields.items():
            setattr(member, field, value)
        self._tar.addfile(member, io.BytesIO(data))
        return self

    def folder(self, name: str, mode: int = 0o755) -> TarMaker:
        return self.add(name, kind=tarfile.DIRTYPE, mode=mode)

    def symlink(self, name: str, target: str) -> TarMaker:
        return self.add(name, kind=tarfile.SYMTYPE, linkname=target, mode=0o777)

    def hardlink(self, name: str, target: str) -> TarMaker:
        return self.add(name, kind=tarfile.LNKTYPE, linkname=target)

    def bytes(self) -> bytes:
        self._tar.close()
        return self._bytes.getvalue()

    def write(self, path: Path) -> Path:
        path.write_bytes(self.bytes())
        return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def packed(data: bytes, how: str) -> bytes:
    return {"": bytes, "+gzip": lambda d: gzip.compress(d, mtime=0), "+zstd": zstandard.compress}[how](data)


def docker_archive(
    path: Path,
    layers: list[bytes],
    config: dict[str, Any] | None = None,
    tags: Iterable[str] = ("app:1",),
    **changes: Any,
) -> Path:
    """What ``docker save`` writes before version 25. ``changes`` replace members of the image's configuration."""
    document = {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer)}" for layer in layers]},
        **changes,
    }
    outer = TarMaker(program=False)
    encoded = json.dumps(document).encode()
    name = f"{sha256(encoded)}.json"
    outer.add(name, encoded)
    paths = []
    seen: dict[str, str] = {}
    for number, layer in enumerate(layers):
        paths.append(f"{number:064x}/layer.tar")
        outer.folder(f"{number:064x}")
        if (digest := sha256(layer)) in seen:
            outer.symlink(paths[-1], f"../{seen[digest]}")
        else:
            outer.add(paths[-1], layer)
            seen[digest] = paths[-1]
    manifest = [{"Config": name, "RepoTags": list(tags), "Layers": paths}]
    return outer.add("manifest.json", json.dumps(manifest).encode()).write(path)


def oci_archive(
    path: Path,
    layers: list[bytes],
    how: str = "+gzip",
    *,
    name: str = "app:1",
    platform: dict[str, str] | None = None,
    architecture: str = ARCHITECTURE,
    media_type: str = "",
    damage: str = "",
) -> Path:
    """An OCI image layout in a tar, its manifest inside a nested index. ``damage``: leave out or change a blob."""
    outer = TarMaker(program=False)

    def blob(data: bytes, kind: str, what: str) -> dict[str, Any]:
        if damage != f"no {what}":
            stored = data[:-1] + bytes([data[-1] ^ 1]) if damage == f"flipped {what}" else data
            outer.add(f"blobs/sha256/{sha256(data)}", stored)
        return {"mediaType": kind, "digest": f"sha256:{sha256(data)}", "size": len(data)}

    def document(value: Any, kind: str, what: str) -> dict[str, Any]:
        return blob(json.dumps(value).encode(), f"application/vnd.oci.image.{kind}.v1+json", what)

    kind = media_type or f"application/vnd.oci.image.layer.v1.tar{how}"
    described = [blob(packed(layer, how), kind, f"layer {number}") for number, layer in enumerate(layers)]
    diff_ids = [f"sha256:{sha256(layer)}" for layer in layers]
    config = document(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/bin/init"]},
            "rootfs": {"diff_ids": diff_ids},
        },
        "config",
        "config",
    )
    manifest = document({"schemaVersion": 2, "config": config, "layers": described}, "manifest", "manifest")
    attestation = dict(manifest, platform={"os": "unknown", "architecture": "unknown"})
    manifest["platform"] = platform or {"os": "linux", "architecture": ARCHITECTURE}
    nested = document({"schemaVersion": 2, "manifests": [manifest, attestation]}, "index", "index")
    nested["annotations"] = {"org.opencontainers.image.ref.name": name}
    outer.add("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    return outer.add("index.json", json.dumps({"schemaVersion": 2, "manifests": [nested]}).encode()).write(path)


class Listing:
    """What ``unsquashfs -lln`` says of an image: path -> the rest of its line."""

    def __init__(self, squashfs: Path) -> None:
        self._squashfs = squashfs
        text = subprocess.run(
            ["unsquashfs", "-lln", "-d", "", str(squashfs)], capture_output=True, check=True, errors="surrogateescape"
        ).stdout
        # MODE UID/GID SIZE DATE TIME PATH
        pattern = re.compile(r"(\S{10}) (\d+)/(\d+)\s+(\d+) \S+ \S+ (/?.*)", re.DOTALL)
        self.lines = {}
        for line in text.splitlines():
            if match := pattern.fullmatch(line):
                mode, uid, gid, size, path = match.groups()
                path, _, target = path.partition(" -> ")
                self.lines[path.lstrip("/")] = (mode, int(uid), int(gid), int(size), target)

    def __contains__(self, path: str) -> bool:
        return path in self.lines

    def mode(self, path: str) -> str:
        return self.lines[path][0]

    def cat(self, path: str) -> bytes:
        return subprocess.run(["unsquashfs", "-cat", str(self._squashfs), path], capture_output=True, check=True).stdout


@pytest.fixture
def library(tmp_path: Path) -> ImageLibrary:
    return ImageLibrary(tmp_path / "images")


@pytest.fixture
def nothing_left(library: ImageLibrary, tmp_path: Path):
    """After the test: the library holds what its index lists, and nothing else."""
    yield
    folder = tmp_path / "images"
    listed = {image.digest.removeprefix("sha256:") for image in library.list()}
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    assert found - {"lock", "index.json", "blobs", "incoming"} == listed
    needed = {path.name for digest in listed for path in library.blob_files(digest)}
    kept = {path.name for path in (folder / "blobs").iterdir()} if found else set()
    assert kept == needed and library.incoming_files() == []
