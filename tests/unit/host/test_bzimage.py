"""Kernel images that are made here, in each packing that distributions use."""

from __future__ import annotations

import gzip
import lzma
import random
import struct
import subprocess

import pytest
import zstandard

from perdure.errors import InvalidValue, Unsupported
from perdure.host.bzimage import plain_kernel

KERNEL = b"\x7fELF" + random.Random(1).randbytes(300_000) + bytes(200_000)


def lz4(data: bytes) -> bytes:
    return subprocess.run(["lz4", "-l", "-c", "-q"], input=data, capture_output=True, check=True).stdout


def bzimage(payload: bytes) -> bytes:
    """A boot sector and four setup sectors, then 64 bytes of code before the payload."""
    head = bytearray(5 * 512)
    head[0x1F1] = 4
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 64, len(payload))
    return bytes(head) + b"\x90" * 64 + payload + b"what follows the payload"


def sized(packed: bytes) -> bytes:
    return packed + struct.pack("<I", len(KERNEL))


PACKINGS = {
    "gzip": lambda: gzip.compress(KERNEL),  # its own trailer is the size
    "xz": lambda: sized(lzma.compress(KERNEL, check=lzma.CHECK_CRC32)),
    "zstd": lambda: sized(zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(KERNEL)),
    "lz4": lambda: sized(lz4(KERNEL)),
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_unpacks(packing: str) -> None:
    assert plain_kernel(bzimage(PACKINGS[packing]())) == KERNEL


@pytest.mark.parametrize("packing", PACKINGS)
def test_refuses_a_damaged_payload(packing: str) -> None:
    payload = bytearray(PACKINGS[packing]())
    payload[len(payload) // 2 : len(payload) // 2 + 64] = bytes(64)
    try:
        assert plain_kernel(bzimage(bytes(payload))) != KERNEL  # lz4 has no checksum: wrong literals pass
        assert packing == "lz4"
    except InvalidValue as error:
        assert "kernel image" in error.message


@pytest.mark.parametrize("packing", PACKINGS)
def test_refuses_a_truncated_image(packing: str) -> None:
    image = bzimage(PACKINGS[packing]())
    with pytest.raises(InvalidValue, match="truncated"):
        plain_kernel(image[: len(image) // 2])


def test_refuses_a_wrong_size() -> None:
    packed = lzma.compress(KERNEL) + struct.pack("<I", len(KERNEL) + 1)
    with pytest.raises(InvalidValue, match="says 500,005"):
        plain_kernel(bzimage(packed))


def test_names_a_packing_that_it_does_not_know() -> None:
    with pytest.raises(Unsupported, match="425a68"):
        plain_kernel(bzimage(b"BZh91AY&SY" + bytes(100)))


def test_a_plain_kernel_stays_as_it_is() -> None:
    assert plain_kernel(KERNEL) is KERNEL


def test_arm64_image_plain_gzip_and_zboot() -> None:
    image = bytearray(random.Random(2).randbytes(10_000))
    image[0x38:0x3C] = b"ARM\x64"
    plain = bytes(image)
    packed = gzip.compress(plain)
    zboot = b"MZ\0\0zimg" + struct.pack("<II", 64, len(packed)) + bytes(48) + packed
    assert plain_kernel(plain) == plain
    assert plain_kernel(gzip.compress(plain)) == plain
    assert plain_kernel(zboot) == plain


@pytest.mark.parametrize("junk", [b"", b"MZ", b"#!/bin/sh\n" * 100, bytes(5000)])
def test_refuses_what_is_no_kernel(junk: bytes) -> None:
    with pytest.raises(InvalidValue, match="not a Linux kernel image"):
        plain_kernel(junk)
