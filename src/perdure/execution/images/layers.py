"""Layers into one tree: the first of two passes over an image, which reads and checks everything but packs nothing."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import ImageInvalid, NoSpace
from perdure.execution.images.bytestream import Section
from perdure.execution.images.tarmembers import members
from perdure.execution.images.tree import Tree, stored_bytes

MEMBERS_MAX = 2_000_000  # headers kept in memory, about 1 KiB each; the largest images on Docker Hub have a quarter
# e_machine of the programs that the kernel of a machine runs (elf.h): x86-64 also runs 32-bit x86.
_MACHINES = {"x86_64": (62, 3), "aarch64": (183,)}
_NAMES = {62: "x86-64", 3: "x86", 183: "aarch64", 40: "arm", 243: "riscv", 22: "s390x", 21: "ppc64"}


@dataclass(frozen=True)
class Layer:
    """One layer's tar. The digests, where known, are those that the archive promises (``sha256:HEX``)."""

    section: Section
    blob_digest: str = ""  # of the bytes as stored
    diff_id: str = ""  # of the decompressed tar

    @property
    def name(self) -> str:
        return self.section.name


def merge(layers: Sequence[Layer], *, relative_only: bool, folder: Path) -> Tree:
    """Apply ``layers`` in order; ``folder`` is where the image will be written.

    Raises ImageInvalid for anything that is wrong in them, also that the result is no root file system, or one for
    another kind of machine; NoSpace as soon as their files' bytes exceed what is free in ``folder``: the packed image
    is smaller, but an archive may be a bomb, and what fits unpacked is sure to fit packed.
    """
    tree = Tree(relative_only=relative_only)
    free = shutil.disk_usage(folder).free
    stored = 0
    count = 0
    for number, layer in enumerate(layers):
        promised = bool(layer.blob_digest or layer.diff_id)
        reader = layer.section.open(verify=promised)
        for ordinal, member in enumerate(members(reader, layer.name, vouched=bool(layer.diff_id))):
            header = member.header
            node = tree.apply(number, ordinal, header)
            count += 1
            if count > MEMBERS_MAX:
                raise ImageInvalid(f"{layer.name}: more than {MEMBERS_MAX} files", hint="Leave out what is not needed.")
            if node is None or not header.isreg():
                continue
            stored += stored_bytes(header)
            if stored > free:
                raise NoSpace(
                    f"{layer.name}: its files are larger than the {free >> 20} MiB that are free in {folder}",
                    hint="Remove images that are not needed (fcrun images; fcrun rmi NAME), or use a larger disk.",
                )
            if header.mode & 0o111:
                start = member.start(20)
                if start[:4] == b"\x7fELF" and len(start) == 20:
                    node.machine = int.from_bytes(start[18:20], "little" if start[5] == 1 else "big")
        if promised:
            reader.drain()
            _compare(layer.name, layer.blob_digest, reader.raw_digest)
            _compare(layer.name, layer.diff_id, reader.digest)
    _check_runnable(tree)
    return tree


def _compare(name: str, promised: str, found: str) -> None:
    if promised and promised != found:
        raise ImageInvalid(
            f"{name}: its digest is {found}, but the archive promises {promised}",
            hint="The archive was changed or damaged: save or pull the image again.",
        )


def _check_runnable(tree: Tree) -> None:
    """An image must hold a program that this machine can run: an executable ELF file. Scripts need one too."""
    machines = {node.machine for _, node in tree.walk() if node.machine is not None}
    here = platform.machine()
    if not machines:
        if {"manifest.json", "oci-layout"} & tree.root.children.keys():
            raise ImageInvalid("this is an image archive, not a root file system", hint="Use: fcrun load -i FILE")
        raise ImageInvalid(
            "this is not a root file system: no executable program is in it",
            hint="Pack a whole root file system: tar -C ROOT -c . > root.tar (or docker export CONTAINER).",
        )
    if machines.isdisjoint(_MACHINES.get(here, ())):
        found = ", ".join(sorted(_NAMES.get(machine, f"e_machine {machine}") for machine in machines))
        raise ImageInvalid(
            f"its programs are for {found}, but this machine is {here}",
            hint=f"Get the image for this machine (for example docker pull --platform linux/{oci_architecture()}).",
        )


def oci_architecture() -> str:
    """This machine's name in OCI images (GOARCH)."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
