"""Which blocks a machine touches first after a restore: a hint, which may be lost (docs/formats/manifest.md)."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable
from itertools import islice

BLOCKS_MAX = 1 << 15


def encode(blocks: Iterable[int]) -> bytes:
    """The file of these blocks, in the order of their first touch; at most BLOCKS_MAX of them."""
    body = array("I", islice(blocks, BLOCKS_MAX)).tobytes()
    return zlib.crc32(body).to_bytes(4, "little") + body


def decode(data: bytes) -> list[int]:
    """The blocks; none where the file is damaged: it only saves time."""
    if len(data) % 4 or zlib.crc32(data[4:]).to_bytes(4, "little") != data[:4]:
        return []
    return list(array("I", data[4:]))
