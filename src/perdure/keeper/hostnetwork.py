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


def prepare(guarded: Sequence[str], marker: str) -> None:
    """Make the rules of an emulated host before there is any bridge; no machine reaches the ``guarded`` networks.

    With the first rule for each of its ways through, the kernel rewrites its own code by way of an int3, which QEMU may
    keep for ever when another processor translates the same code in that moment (emulated_init.c, ``hold_a_vm``). So it
    is done while there is only one processor, and as these rules stay it is not done again: ``marker`` is a file that
    says so to a launcher that is started again, beside machines that run on the other processors.
    """
    if os.path.exists(marker):
        return
    others = [name for name in os.listdir(_PROCESSORS) if name[:3] == "cpu" and name[3:].isdigit() and name != "cpu0"]
    _switch(others, "0")
    try:
        netlink = nftables.open_netlink()
        try:
            _make_rules(netlink, [configuration.cidr(network) for network in guarded])
        finally:
            netlink.close()
    finally:
        _switch(others, "1")
    os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def ensure_bridge(
    outside: links.Links, rules: Netlink, bridge: str, address: str, prefix: int, *, isolated: bool
) -> None:
    """The bridge of a network, up, with the host's own address in it (empty: none), and the host's rules: also where
    somebody flushed them, or died half-way. Sockets are of the host's network. Raises OSError."""
    if not nftables.has_table(rules, TABLE):
        _make_rules(rules, [])
    is_new = not outside.index(bridge)
    try:
        if is_new:
            outside.add_bridge(bridge)
    except OSError as error:
        if not is_there(error):  # another keeper was faster
            raise
        is_new = False
    try:
        if address:
            outside.add_address(bridge, address, prefix)
    except OSError as error:
        if not is_there(error):
            raise
    outside.up(bridge)
    if is_new and not isolated:
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


def forward_packets(bridge: str) -> None:
    """In the host's network: let what comes by the bridge go on, and what answers it come back. Where the host forwards
    nothing else, it still does not: other interfaces than these stay as they are."""
    for interface in (bridge, *_ways_out()):
        try:
            write_file(f"/proc/sys/net/ipv4/conf/{interface}/forwarding", "1")
        except OSError:
            continue  # it went away in this moment


def _ways_out() -> list[str]:
    """The interfaces of the host's default routes (proc_net(5))."""
    fd = os.open("/proc/self/net/route", os.O_RDONLY | os.O_CLOEXEC)
    try:
        lines = os.read(fd, 1 << 20).decode().splitlines()[1:]
    finally:
        os.close(fd)
    return [fields[0] for fields in map(str.split, lines) if len(fields) > 7 and fields[7] == "00000000"]


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
