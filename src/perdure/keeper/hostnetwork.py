"""The host's side of the machines' networks: a bridge per network, and the rules for what comes by them.

They are made by the first machine that needs them, and stay: an empty bridge costs nothing. ``pd…`` are our bridges,
``pv…`` the ends of the machines' pairs that are their ports.
"""

from __future__ import annotations

import os

from perdure.errors import InvalidValue
from perdure.execution.machine import configuration
from perdure.linux import links, nftables
from perdure.linux.netlink import is_there

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from perdure.linux.netlink import Netlink

TABLE = "perdure"
BRIDGES = "pd*"
_PROCESSORS = "/sys/devices/system/cpu"


def prepare(guard: str) -> None:
    """Make the rules of an emulated host before there is any bridge.

    With the first rule for each of its ways through, the kernel rewrites its own code by way of an int3, which QEMU may
    keep for ever when another processor translates the same code in that moment (emulated_init.c, ``hold_a_vm``). So it
    is done while there is only one processor, and as these rules stay it is not done again.
    """
    others = [name for name in os.listdir(_PROCESSORS) if name[:3] == "cpu" and name[3:].isdigit() and name != "cpu0"]
    _switch(others, "0")
    try:
        _forward_packets()
        netlink = nftables.open_netlink()
        try:
            _make_rules(netlink, [configuration.cidr(guard)])
        finally:
            netlink.close()
    finally:
        _switch(others, "1")


def ensure_bridge(
    outside: links.Links, rules: Netlink, bridge: str, address: str, prefix: int, *, isolated: bool
) -> None:
    """The bridge of a network, up, with the host's own address in it (empty: none). Sockets are of the host's network.

    Raises OSError.
    """
    if outside.index(bridge):
        return
    _forward_packets()
    _make_rules(rules, [])
    try:
        outside.add_bridge(bridge)
        if address:
            outside.add_address(bridge, address, prefix)
    except OSError as error:
        if not is_there(error):  # another keeper was faster
            raise
    outside.up(bridge)
    if not isolated:
        same = nftables.Batch(TABLE)  # where the host filters what a bridge carries, too (bridge-nf-call-iptables)
        same.rule("same", nftables.came_from(bridge), nftables.goes_to(bridge), nftables.ACCEPT)
        same.apply(rules)


def remove_bridge(bridge: str) -> None:
    """Raises InvalidValue (it is none of ours), OSError."""
    if not bridge.startswith(BRIDGES[:-1]):
        raise InvalidValue(f"{bridge} is no bridge of a network")
    outside = links.Links()
    try:
        outside.remove(bridge)
    finally:
        outside.close()


def _make_rules(netlink: Netlink, guarded: Sequence[tuple[str, int]]) -> None:
    try:
        host_rules(guarded).apply(netlink)
    except OSError as error:
        if not is_there(error):
            raise


def host_rules(guarded: Sequence[tuple[str, int]] = ()) -> nftables.Batch:
    """What the host does with what comes by our bridges: out into the world and back, not to the host itself, nor to
    what is ``guarded`` (networks), and not from one network into another."""
    batch = nftables.Batch(TABLE)
    batch.table()
    batch.chain("input", nftables.FILTER, nftables.INPUT)
    batch.rule("input", nftables.came_from(BRIDGES), nftables.KNOWN, nftables.ACCEPT)
    batch.rule("input", nftables.came_from(BRIDGES), nftables.REJECT)
    batch.chain("same")
    batch.chain("forward", nftables.FILTER, nftables.FORWARD)
    batch.rule("forward", nftables.came_from(BRIDGES), nftables.goes_to(BRIDGES), nftables.jump("same"))
    batch.rule("forward", nftables.came_from(BRIDGES), nftables.goes_to(BRIDGES), nftables.REJECT)
    for address, prefix in guarded:
        batch.rule("forward", nftables.came_from(BRIDGES), nftables.is_to(address, prefix), nftables.REJECT)
    batch.rule("forward", nftables.goes_to(BRIDGES), nftables.KNOWN, nftables.ACCEPT)
    batch.rule("forward", nftables.goes_to(BRIDGES), nftables.DROP)
    batch.chain("out", nftables.NAT, nftables.POSTROUTING, nftables.SRCNAT)
    batch.rule("out", nftables.came_from(BRIDGES), nftables.goes_to(BRIDGES, not_=True), nftables.MASQUERADE)
    return batch


def _forward_packets() -> None:
    write_file("/proc/sys/net/ipv4/ip_forward", "1")


def _switch(processors: Sequence[str], to: str) -> None:
    for name in processors:
        try:
            write_file(f"{_PROCESSORS}/{name}/online", to)
        except OSError:
            pass  # a processor that cannot be switched stays on


def write_file(path: str, text: str) -> None:
    """For what the kernel offers as files. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
