"""The programs that are PID 1 in a guest, built for every architecture by the compiler that the product uses."""

from __future__ import annotations

import platform
import struct
from pathlib import Path

import pytest

from perdure.host import static_build
from perdure.host.paths import Home
from perdure.host.progress import silent
from perdure.host.vault import open_vault

PT_INTERP = 3
GUESTD_MAX = 160 << 10  # with perdure-guest; on aarch64 its parts begin at multiples of 64 KiB


def vault_of(architecture: str) -> Path:
    """This machine's own assets, and beside them a folder for another architecture: the compiler makes a C library for
    each one first, which takes a minute."""
    cache = Home.find().cache
    return cache if architecture == platform.machine() else cache / "tests" / architecture


@pytest.mark.parametrize(("architecture", "machine"), [("x86_64", 62), ("aarch64", 183)])
def test_guestd_is_static_and_small(architecture: str, machine: int) -> None:
    with open_vault(vault_of(architecture)) as vault:
        part = static_build.ensure_guestd(vault, architecture, silent)
    program = part.files["guestd"].read_bytes()
    assert len(program) <= GUESTD_MAX
    assert program[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", program, 18) == (machine,)
    (start,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    kinds = [struct.unpack_from("<I", program, start + number * size)[0] for number in range(count)]
    assert count and PT_INTERP not in kinds
