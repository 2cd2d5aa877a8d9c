"""A network card of its own for the line to an emulated host: a tap(4), with this machine at its other end.

QEMU's user network takes each connection apart and puts it together again, packet by packet of 1500 bytes, in the
thread that serves all devices: 18 MiB/s, at two thirds of a processor. Over a tap the kernels of both sides speak
with each other, 64 KiB at once and without checksums. Where none can be made (no /dev/net/tun, no CAP_NET_ADMIN) or
where nothing comes through it, the user network's forwarded port serves instead.

The card is there as long as QEMU holds its descriptor. Its addresses are link-local (RFC 3927), and no machine reaches
the block that they are of (``emulated.guarded``).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from perdure.host.paths import Home
from perdure.linux import links

NETMASK = "255.255.255.252"
_PREFIX = 30
NETWORK = ipaddress.IPv4Network("169.254.64.0/18")  # far from where clouds keep their services
_BLOCKS = NETWORK.num_addresses // 4
_TRIES = 16


@dataclass(frozen=True)
class LineCard:
    """An open tap: ``fd`` is for QEMU; ``here`` and ``there`` are the addresses of its two ends."""

    fd: int
    name: str
    here: str
    there: str

    def close(self) -> None:
        """Close this process' descriptor. The last one takes the card with it."""
        os.close(self.fd)


def open_card(home: Home) -> LineCard | None:
    """The card of a home's emulated host, up, with its address on this side. None: there can be none here."""
    name = _name(home)
    here, there = _addresses(home.tag)
    try:
        fd = links.open_tap(name)
    except OSError:
        return None
    try:
        with contextlib.suppress(OSError):  # it would only talk to itself
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        found = links.Links()
        try:
            found.add_address(name, here, _PREFIX)
            found.up(name)
        finally:
            found.close()
    except OSError:
        os.close(fd)
        return None
    return LineCard(fd, name, here, there)


def mend(home: Home, there: str) -> bool:
    """Bring the card of a living emulated host up again, with its address: somebody took it away (a network manager,
    ``ip addr flush``), and all connections of the line wait for it. False: nothing of it is missing, or there is none.
    """
    if ipaddress.IPv4Address(there) not in NETWORK:
        return False
    name = _name(home)
    try:
        is_up = int(Path(f"/sys/class/net/{name}/flags").read_text(), 16) & 1
    except OSError:
        return False
    here = str(ipaddress.IPv4Address(there) - 1)
    if is_up and here in local_addresses():
        return False
    found = links.Links()
    try:
        with contextlib.suppress(FileExistsError):
            found.add_address(name, here, _PREFIX)
        found.up(name)
    except OSError:
        return False
    finally:
        found.close()
    return True


def _name(home: Home) -> str:
    return f"pline{home.tag}"


def _addresses(tag: str) -> tuple[str, str]:
    """Both ends of a block of four that no card of this machine has; the same for the same home, where that is free."""
    taken = set(local_addresses())
    first = int(tag, 16)
    for turn in range(_TRIES):
        block = int(NETWORK.network_address) + (first + turn) % _BLOCKS * 4
        here, there = (str(ipaddress.IPv4Address(block + end)) for end in (1, 2))
        if here not in taken and there not in taken:
            break
    return here, there


def local_addresses() -> Iterator[str]:
    """This machine's own IPv4 addresses (proc_net(5), fib_trie)."""
    try:
        lines = Path("/proc/net/fib_trie").read_text().splitlines()
    except OSError:
        return
    for before, line in pairwise(lines):
        if line.split()[:3] == ["/32", "host", "LOCAL"]:
            yield before.split()[-1]
