"""Unpacks what a distribution boots (bzImage, arm64 Image, EFI zboot) to the plain kernel that Firecracker loads.

x86 (Documentation/arch/x86/boot.rst): at 0x1F1 the number of setup sectors, at 0x202 ``HdrS``, at 0x248 the offset and
at 0x24C the length of the payload, counted from the end of the setup code. The payload is the compressed ELF vmlinux;
its last four bytes are the unpacked size (for gzip they are the format's own trailer, with the same meaning).
arm64: the plain Image has ``ARM\\x64`` at 0x38; an EFI zboot file has ``zimg`` at 4, offset and length at 8.
"""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess
import zlib

import zstandard

from perdure.errors import InvalidValue, Unsupported

ELF = b"\x7fELF"
ARM64_IMAGE = b"ARM\x64"
WINDOW_MAX_BYTES = 1 << 31  # kernels are packed with zstd -22, which uses windows up to 128 MiB


def plain_kernel(image: bytes) -> bytes:
    """The ELF vmlinux (x86-64) or the plain Image (arm64) inside ``image``.

    Raises InvalidValue (not a kernel image, or a damaged one) and Unsupported (a codec that is not known here).
    """
    if image[:4] == ELF or image[0x38:0x3C] == ARM64_IMAGE:
        return image
    if image[0x202:0x206] == b"HdrS":
        return _checked_elf(_unpacked(_x86_payload(image)))
    if image[:2] == b"MZ" and image[4:8] == b"zimg":
        offset, length = struct.unpack_from("<II", image, 8)
        return _unpacked(image[offset : offset + length])
    if image[:2] == b"\x1f\x8b":
        return plain_kernel(_gunzip(image))
    raise InvalidValue("not a Linux kernel image (neither bzImage, ELF, arm64 Image nor EFI zboot)")


def _x86_payload(image: bytes) -> bytes:
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if length < 8 or len(payload) != length:
        raise InvalidValue(f"a truncated kernel image: its payload of {length:,} bytes ends after {len(payload):,}")
    return payload


def _checked_elf(kernel: bytes) -> bytes:
    if kernel[:4] != ELF:
        raise InvalidValue("the payload of the kernel image is not an ELF file")
    return kernel


def _unpacked(payload: bytes) -> bytes:
    (size,) = struct.unpack_from("<I", payload, len(payload) - 4)
    try:
        if payload[:4] == b"\x02\x21\x4c\x18":
            kernel = _unlz4(payload[:-4])
        elif payload[:4] == b"\x28\xb5\x2f\xfd":
            kernel = unzstd(payload)
        elif payload[:6] == b"\xfd7zXZ\x00":
            kernel = lzma.LZMADecompressor().decompress(payload)
        elif payload[:2] == b"\x1f\x8b":
            kernel = _gunzip(payload)
        else:
            raise Unsupported(f"a kernel image packed in a way that is not known here (begins {payload[:6].hex()})")
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise InvalidValue(f"a damaged kernel image: {error}") from None
    if len(kernel) != size:
        raise InvalidValue(f"a damaged kernel image: it unpacks to {len(kernel):,} bytes and says {size:,}")
    return kernel


def unzstd(data: bytes) -> bytes:
    """One zstd frame, with or without its size in the header; bytes after it are ignored."""
    return zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX_BYTES).decompressobj().decompress(data)


def _gunzip(data: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data)


def _unlz4(data: bytes) -> bytes:
    """The legacy LZ4 format, which only the lz4 program reads."""
    program = shutil.which("lz4")
    if program is None:
        raise Unsupported("the kernel image is packed with LZ4 and there is no lz4 program", hint="apt-get install lz4")
    done = subprocess.run([program, "-dcq"], input=data, capture_output=True, check=False)
    if not done.stdout:
        raise InvalidValue(f"a damaged kernel image: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
