"""The network of one machine: a namespace of its own with a tap, and by request ways out of it.

    guest eth0 GUEST/30 -- tap0 HOST/30 -- [rules, NAT] -- up0, up1 … ADDRESS -- veth -- bridge of a network -- outside

Every guest has the same addresses, so a snapshot fits everywhere; to others it is known by its address in each network,
which is its namespace's, with NAT in between. The keeper itself lives in the namespace, and so does all that it starts:
when they end the kernel takes the namespace with the tap, the rules and both ends of the pairs. What it needs of the
outside (its name server, the bridges) it reaches by sockets that it made before it left.
"""

from __future__ import annotations

import socket
import sys

from perdure.errors import InvalidValue, MachineFailed
from perdure.execution.machine import configuration
from perdure.keeper import hostnetwork
from perdure.keeper.hostnetwork import TABLE
from perdure.keeper.names import Names
from perdure.linux import links, namespaces, nftables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from perdure.keeper.loop import Loop
    from perdure.linux.netlink import Netlink

TAP = configuration.TAP
GUEST, HOST, PREFIX = configuration.GUEST_ADDRESS, configuration.HOST_ADDRESS, 30
TAP_MAC = bytes.fromhex("02fc00000001")  # the same everywhere: guests keep it in their tables across snapshots
UPLINKS = "up*"
LINK_LOCAL = ("169.254.0.0", 16)  # where clouds answer who the machine is, with its keys
NAME_TIMEOUT_S = 3600  # how long an address stays open that a permitted name was resolved to


class Network:
    """``open`` once, at the keeper's start; ``join`` when it is known whose machine it is."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._names: Names | None = None
        self._outside: links.Links | None = None
        self._outside_rules: Netlink | None = None
        self._inside: links.Links | None = None
        self._rules: Netlink | None = None
        self._namespace = self._host = -1
        self._uplinks: dict[int, _Uplink] = {}
        self._permitted: set[str] = set()  # addresses that were put among "names"; of some the hour may be over
        self._way_out: int | None = None  # the number of the uplink with the default route

    def open(self, tap_owner: int = 0) -> None:
        """Leave the host's network for one with nothing but the tap. Raises OSError."""
        self._outside, self._outside_rules = links.Links(), nftables.open_netlink()
        self._names = Names(self._loop, Names.outside(), self._permit, self._dial)
        self._host = namespaces.open_network()
        namespaces.leave_network()
        self._namespace = namespaces.open_network()
        _set("net/ipv6/conf/all/disable_ipv6", "1")
        _set("net/ipv6/conf/default/disable_ipv6", "1")
        _set("net/ipv4/ip_forward", "1")
        _set("net/ipv4/conf/all/arp_notify", "1")  # who remembers another machine's address hears of this one
        _set("net/ipv4/conf/default/arp_notify", "1")
        # A keeper that is killed leaves connections to a guest that does not answer any more: they hold the namespace.
        _set("net/ipv4/tcp_orphan_retries", "1")
        _set("net/ipv4/tcp_fin_timeout", "5")
        self._inside, self._rules = links.Links(), nftables.open_netlink()
        self._inside.up("lo")
        links.add_tap(TAP, tap_owner)
        self._inside.up(TAP, mac=TAP_MAC)
        self._inside.add_address(TAP, HOST, PREFIX)
        _closed().apply(self._rules)
        self._names.open()

    def join(self, sandbox: str, params: dict[str, Any]) -> None:
        """Connect it as the parameter ``network`` of a start says (docs/design/0001-contracts.md, 3), also in its life.

        Raises InvalidValue, MachineFailed.
        """
        wanted = _Wanted(params)
        assert self._names is not None and self._rules is not None
        try:
            self._change_uplinks(sandbox, wanted.uplinks)
            _opened(wanted, waits=bool(wanted.looked_up)).apply(self._rules)
            self._names.know(wanted.servers, wanted.allowed_names)
            self._names.list(wanted.table)
            if wanted.looked_up:
                self._names.look_up(wanted.looked_up, lambda: self._looked_up(wanted))
        except OSError as error:
            raise MachineFailed(
                f"the network of sandbox {sandbox} cannot be made: {error}", hint="fcrun doctor says what is missing."
            ) from error

    def _change_uplinks(self, sandbox: str, wanted: list[_Uplink]) -> None:
        """Add those that are new, and remove those that are not wanted any more. The first one leads to the world."""
        assert self._inside is not None
        for number, uplink in list(self._uplinks.items()):
            if uplink not in wanted:
                self._inside.remove(f"up{number}")
                del self._uplinks[number]
        for uplink in wanted:
            if uplink not in self._uplinks.values():
                number = next(number for number in range(len(wanted)) if number not in self._uplinks)
                self._add_uplink(sandbox, number, uplink)
                self._uplinks[number] = uplink
        numbers = {uplink.address: number for number, uplink in self._uplinks.items()}
        first = next((numbers[uplink.address] for uplink in wanted if uplink.gateway), None)
        if first is not None and first != self._way_out:
            self._inside.add_default_route(f"up{first}", self._uplinks[first].gateway)
        self._way_out = first

    def _add_uplink(self, sandbox: str, number: int, uplink: _Uplink) -> None:
        assert self._outside is not None and self._inside is not None
        outside, name = f"pv{sandbox[:12]}{number}", f"up{number}"
        assert self._outside_rules is not None
        hostnetwork.ensure_bridge(
            self._outside, self._outside_rules, uplink.bridge, uplink.gateway, uplink.prefix, isolated=uplink.isolated
        )
        with namespaces.visiting(self._host, self._namespace):
            hostnetwork.forward_packets(uplink.bridge)
        self._outside.remove(outside)  # of a machine that was killed in this moment
        # The same address has the same one always: others remember it, also when the machine is another one.
        mac = b"\x02\xfc" + bytes(int(part) for part in uplink.address.split("."))
        self._outside.add_veth(outside, name, self._namespace, mac)
        self._outside.join(outside, uplink.bridge, isolated=uplink.isolated)
        self._outside.up(outside)
        self._inside.add_address(name, uplink.address, uplink.prefix)
        self._inside.up(name)

    def _looked_up(self, wanted: _Wanted) -> None:
        """Whatever is closed now is not to be opened in a moment: who tries it is told so at once."""
        assert self._rules is not None
        try:
            _opened(wanted).apply(self._rules)
        except OSError as error:
            print(f"the rules of egress stay as they are: {error}", file=sys.stderr, flush=True)

    @property
    def opened(self) -> list[str]:
        """The names whose addresses are open: what ``looked_up`` of its next restore should say."""
        assert self._names is not None
        return self._names.opened(NAME_TIMEOUT_S)

    def list_names(self, params: dict[str, Any]) -> None:
        """The names and addresses of the others in its networks, from now on. Raises InvalidValue."""
        assert self._names is not None
        self._names.list(_table(params))

    def _dial(self) -> socket.socket:
        """A TCP socket of the host's network, which it stays in."""
        with namespaces.visiting(self._host, self._namespace):
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)

    def _permit(self, addresses: list[str]) -> None:
        """Open the way to what a permitted name stands for, for an hour from now. Raises OSError."""
        assert self._rules is not None
        for address in dict.fromkeys(addresses):
            if address in self._permitted:
                try:  # the kernel does not lengthen what an address has left
                    again = nftables.Batch(TABLE)
                    again.remove_addresses("names", [address])
                    again.add_addresses("names", [address], NAME_TIMEOUT_S)
                    again.apply(self._rules)
                    continue
                except FileNotFoundError:
                    pass  # its hour is over
            batch = nftables.Batch(TABLE)
            batch.add_addresses("names", [address], NAME_TIMEOUT_S)
            batch.apply(self._rules)
            self._permitted.add(address)


class _Uplink:
    """One network that it is in."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise InvalidValue("each of 'networks' must be an object")
        self.bridge = configuration.interface(value, "bridge")
        self.address = configuration.address(value, "address")
        self.gateway = configuration.address(value, "gateway") if value.get("gateway") else ""
        self.prefix = configuration.whole(value, "prefix", 8, 30)
        self.isolated = bool(value.get("isolated"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Uplink) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.address)


class _Wanted:
    """The parameter ``network``."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.uplinks = [_Uplink(value) for value in configuration.listed(params, "networks")]
        self.restricted = params.get("egress") is not None
        self.allowed = [configuration.cidr(value) for value in configuration.listed(params, "egress")]
        self.allowed_names = configuration.texts(params, "egress_names") if self.restricted else None
        self.servers = configuration.texts(params, "servers")
        self.table = _table(params)
        self.looked_up = configuration.texts(params, "looked_up")  # before it slept: a guest may remember the addresses


def _table(params: dict[str, Any]) -> dict[str, str]:
    table = params.get("names") or {}
    if not isinstance(table, dict):
        raise InvalidValue("the parameter 'names' must be an object")
    return {name: configuration.address(table, name) for name in table}


def _closed() -> nftables.Batch:
    """The rules of a namespace that leads nowhere. The guest may lie about who it is; it may ask for names."""
    batch = nftables.Batch(TABLE)
    batch.table()
    batch.addresses("networks", networks=True)
    batch.addresses("names")
    batch.chain("lies", nftables.FILTER, nftables.PREROUTING, nftables.RAW)
    batch.rule("lies", nftables.came_from(TAP), nftables.is_from(GUEST, not_=True), nftables.DROP)
    batch.chain("input", nftables.FILTER, nftables.INPUT, accepts=False)
    batch.rule("input", nftables.KNOWN, nftables.ACCEPT)
    for protocol in (nftables.UDP, nftables.TCP):
        batch.rule("input", nftables.came_from(TAP), nftables.is_to_port(protocol, 53), nftables.ACCEPT)
    batch.rule("input", nftables.came_from(TAP), nftables.is_protocol(nftables.ICMP), nftables.ACCEPT)
    batch.chain("egress")
    batch.chain("forward", nftables.FILTER, nftables.FORWARD, accepts=False)
    batch.rule("forward", nftables.KNOWN, nftables.ACCEPT)
    batch.rule("forward", nftables.came_from(TAP), nftables.goes_to(UPLINKS), nftables.jump("egress"))
    batch.rule("forward", nftables.came_from(UPLINKS), nftables.goes_to(TAP), nftables.ACCEPT)
    batch.chain("in", nftables.NAT, nftables.PREROUTING, nftables.DSTNAT)
    batch.rule("in", nftables.came_from(UPLINKS), nftables.send_to(GUEST))
    batch.chain("out", nftables.NAT, nftables.POSTROUTING, nftables.SRCNAT)
    # Guests of one snapshot choose the same ports. Where a machine was killed the world still has its connections, and
    # takes another one from there for a part of these. What a guest had before it slept goes on from where it was.
    batch.rule("out", nftables.goes_to(UPLINKS), nftables.BEGINS, nftables.MASQUERADE_ANEW)
    batch.rule("out", nftables.goes_to(UPLINKS), nftables.MASQUERADE)
    return batch


def _opened(wanted: _Wanted, *, waits: bool = False) -> nftables.Batch:
    """Where the guest may go, and no longer where it might before. ``waits``: some of the rest may be opened yet, so it
    is not refused: who has tried tries again by itself."""
    batch = nftables.Batch(TABLE)
    batch.empty("egress")
    batch.clear("networks")
    if wanted.restricted:
        batch.add_networks("networks", wanted.allowed)
        batch.rule("egress", nftables.is_to_one_of("networks"), nftables.ACCEPT)
        batch.rule("egress", nftables.is_to(*LINK_LOCAL), nftables.REJECT)
        batch.rule("egress", nftables.is_to_one_of("names"), nftables.ACCEPT)
        batch.rule("egress", nftables.DROP if waits else nftables.REJECT)
    else:
        batch.rule("egress", nftables.is_to(*LINK_LOCAL), nftables.REJECT)
        batch.rule("egress", nftables.ACCEPT)
    return batch


def _set(name: str, value: str) -> None:
    """sysctl(8), of the network namespace of this process. One that this kernel has not got needs no setting."""
    try:
        hostnetwork.write_file(f"/proc/sys/{name}", value)
    except FileNotFoundError:
        pass
