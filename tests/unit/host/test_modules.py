from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest
import zstandard

from perdure.errors import Unsupported
from perdure.host.modules import entries, load_order, module_name

DEP = """\
kernel/drivers/virtio/virtio_blk.ko.xz: kernel/drivers/virtio/virtio.ko.xz kernel/drivers/virtio/virtio_ring.ko.xz
kernel/drivers/virtio/virtio.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz
kernel/drivers/virtio/virtio_ring.ko.xz:
kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/arch/x86/kvm/kvm.ko.xz
kernel/arch/x86/kvm/kvm.ko.xz:
"""
BUILTIN = "kernel/fs/ext4/ext4.ko\nkernel/fs/squashfs/squashfs.ko\n"


def ordered(*wanted: str) -> list[str]:
    return [module_name(path) for path in load_order(wanted, DEP, BUILTIN)]


def test_dependencies_come_first_and_once() -> None:
    assert ordered("virtio_blk", "virtio") == ["virtio_ring", "virtio", "virtio_blk"]
    assert ordered("virtio", "virtio_blk") == ["virtio_ring", "virtio", "virtio_blk"]


def test_a_dash_is_an_underscore() -> None:
    assert ordered("kvm-amd") == ordered("kvm_amd") == ["kvm", "kvm_amd"]


def test_built_in_modules_are_left_out() -> None:
    assert ordered("squashfs", "ext4") == []


def test_missing_modules_are_all_named() -> None:
    with pytest.raises(Unsupported, match="overlay, zfs") as caught:
        ordered("overlay", "virtio", "zfs")
    assert caught.value.details["missing"] == ["overlay", "zfs"]


def test_entries_are_unpacked_and_listed_in_order(tmp_path: Path) -> None:
    packed = {
        "a.ko": b"A",
        "b-b.ko.xz": lzma.compress(b"B"),
        "c.ko.zst": zstandard.ZstdCompressor().compress(b"C"),
        "d.ko.gz": gzip.compress(b"D"),
    }
    for name, data in packed.items():
        (tmp_path / name).write_bytes(data)
    found = {entry.name: entry.data for entry in entries(tmp_path, ["c.ko.zst", "a.ko"], ["b-b.ko.xz", "d.ko.gz"])}
    assert found["mod/order"] == b"c.ko\na.ko\n"
    assert found["mod/later"] == b"b_b.ko\nd.ko\n"
    assert [found[f"mod/{name}.ko"] for name in ("a", "b_b", "c", "d")] == [b"A", b"B", b"C", b"D"]


def test_a_guest_has_one_list(tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_bytes(b"A")
    assert [entry.name for entry in entries(tmp_path, ["a.ko"])] == ["mod", "mod/a.ko", "mod/order"]
