"""Packet rules (nft(8)): tables, chains, rules and sets, as what nf_tables takes over netlink.

``nft`` itself would take half a second for each new machine where everything is emulated; this takes some hundredths.
Only what our rules need is here. A rule is what its parts match, in order, and then what is done::

    Rule("forward", came_from("tap0"), is_to("169.254.0.0", 16), DROP)

Names and numbers are those of <linux/netfilter/nf_tables.h>; all numbers in it are in the network's order.
"""

from __future__ import annotations

import socket
import struct

from perdure.linux.netlink import ACK, APPEND, CREATE, EXCL, NETFILTER, REQUEST, Netlink, attribute, nested, text
from perdure.linux.netlink import message as _message
from perdure.linux.netlink import number as _number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FILTER, NAT = "filter", "nat"
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)  # NF_INET_*
RAW, DSTNAT, FIRST, SRCNAT = -300, -100, 0, 100  # priorities, as nft names them (filter: 0)
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BEGIN, _END = 0x10, 0x11  # NFNL_MSG_BATCH_*
_GETTABLE = 1
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE, _DELRULE, _NEWSET, _NEWSETELEM, _DELSETELEM = 0, 2, 3, 6, 8, 9, 12, 14
_REGISTER = 1  # NFT_REG_1
_VERDICT = 0  # NFT_REG_VERDICT
_IFNAME_BYTES = 16
_ADDRESS_TYPE, _ADDRESS_BYTES = 7, 4  # nft's own number for an IPv4 address
_INTERVAL, _TIMEOUT, _INTERVAL_END = 0x4, 0x10, 0x1
_META_IIFNAME, _META_OIFNAME, _META_L4PROTO = 6, 7, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_CT_STATE = 0
_ESTABLISHED, _RELATED = 0x2, 0x4
_SOURCE_AT, _DESTINATION_AT = 12, 16  # in the IPv4 header
_TCP_FLAGS_AT, _SYN, _ACK = 13, 0x02, 0x10  # in the TCP header
_RANDOM_FULLY = 0x10  # NF_NAT_RANGE_PROTO_RANDOM_FULLY
TCP, UDP, ICMP = 6, 17, 1


def number(kind: int, value: int) -> bytes:
    return _number(kind, value, ">")


def _expression(name: str, *data: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *data))


def _equals(data: bytes, *, not_: bool = False) -> bytes:
    return _expression("cmp", number(1, _REGISTER), number(2, 1 if not_ else 0), nested(3, attribute(1, data)))


def _masked(mask: bytes) -> bytes:
    same = (number(1, _REGISTER), number(2, _REGISTER), number(3, len(mask)))
    return _expression("bitwise", *same, nested(4, attribute(1, mask)), nested(5, attribute(1, bytes(len(mask)))))


def _meta(key: int) -> bytes:
    return _expression("meta", number(1, _REGISTER), number(2, key))


def _bytes_at(header: int, offset: int, size: int) -> bytes:
    return _expression("payload", number(1, _REGISTER), number(2, header), number(3, offset), number(4, size))


def _verdict(code: int, chain: str = "") -> bytes:
    said = number(1, code & 0xFFFFFFFF) + (text(2, chain) if chain else b"")
    return _expression("immediate", number(1, _VERDICT), nested(2, nested(2, said)))


def _interface(key: int, name: str, not_: bool) -> bytes:
    if name.endswith("*"):
        return _meta(key) + _equals(name[:-1].encode(), not_=not_)
    return _meta(key) + _equals(name.encode().ljust(_IFNAME_BYTES, b"\0"), not_=not_)


# What a rule matches


def came_from(interface: str, *, not_: bool = False) -> bytes:
    """Packets that came in by this interface; ``pd*``: by any whose name begins so."""
    return _interface(_META_IIFNAME, interface, not_)


def goes_to(interface: str, *, not_: bool = False) -> bytes:
    """Packets that go out by it."""
    return _interface(_META_OIFNAME, interface, not_)


def is_from(address: str, *, not_: bool = False) -> bytes:
    """Packets whose IPv4 source it is."""
    source = _bytes_at(_NETWORK_HEADER, _SOURCE_AT, _ADDRESS_BYTES)
    return source + _equals(socket.inet_aton(address), not_=not_)


def is_to(address: str, prefix: int = 32) -> bytes:
    """Packets to that IPv4 network."""
    mask = struct.pack(">I", 0xFFFFFFFF << 32 - prefix & 0xFFFFFFFF)
    destination = _bytes_at(_NETWORK_HEADER, _DESTINATION_AT, _ADDRESS_BYTES)
    return destination + _masked(mask) + _equals(socket.inet_aton(address))


def is_to_one_of(name: str) -> bytes:
    """Packets to an address that a set holds."""
    return _bytes_at(_NETWORK_HEADER, _DESTINATION_AT, _ADDRESS_BYTES) + _in_set(name)


def is_from_one_of(name: str) -> bytes:
    return _bytes_at(_NETWORK_HEADER, _SOURCE_AT, _ADDRESS_BYTES) + _in_set(name)


def _in_set(name: str) -> bytes:
    return _expression("lookup", text(1, name), number(2, _REGISTER))


def is_protocol(protocol: int) -> bytes:
    """TCP, UDP or ICMP."""
    return _meta(_META_L4PROTO) + _equals(bytes([protocol]))


def is_to_port(protocol: int, port: int) -> bytes:
    return is_protocol(protocol) + _bytes_at(_TRANSPORT_HEADER, 2, 2) + _equals(struct.pack(">H", port))


def _begins() -> bytes:
    """The first packet of a TCP connection."""
    flags = _bytes_at(_TRANSPORT_HEADER, _TCP_FLAGS_AT, 1) + _masked(bytes([_SYN | _ACK]))
    return is_protocol(TCP) + flags + _equals(bytes([_SYN]))


def _known() -> bytes:
    """Of a connection that was let through when it began."""
    state = _expression("ct", number(1, _REGISTER), number(2, _CT_STATE))
    return state + _masked(struct.pack("=I", _ESTABLISHED | _RELATED)) + _equals(bytes(4), not_=True)


KNOWN = _known()
BEGINS = _begins()

# What it does

ACCEPT, DROP = _verdict(1), _verdict(0)
REJECT = _expression("reject", number(1, 0), attribute(2, bytes([13])))  # ICMP: administratively prohibited
MASQUERADE = _expression("masq")
MASQUERADE_ANEW = _expression("masq", number(1, _RANDOM_FULLY))  # from a port that nobody foresees


def jump(chain: str) -> bytes:
    return _verdict(-3, chain)


def send_to(address: str) -> bytes:
    """Change the destination (DNAT)."""
    where = _expression("immediate", number(1, _REGISTER), nested(2, attribute(1, socket.inet_aton(address))))
    return where + _expression("nat", number(1, 1), number(2, socket.AF_INET), number(3, _REGISTER))


class Batch:
    """Changes to one table of family ``ip``, which are made together or not at all."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._parts: list[tuple[int, int, bytes]] = []
        self._sets = 0

    def _add(self, kind: int, flags: int, payload: bytes) -> None:
        self._parts.append((kind, flags, payload))

    def table(self) -> None:
        """Make the table. Where it is there already the whole batch fails with FileExistsError."""
        self._add(_NEWTABLE, CREATE | EXCL, text(1, self._table))

    def drop_table(self) -> None:
        self._add(_DELTABLE, 0, text(1, self._table))

    def chain(self, name: str, kind: str = "", hook: int = 0, priority: int = 0, *, accepts: bool = True) -> None:
        """A chain; with a kind (FILTER, NAT) one that the kernel sends its packets through."""
        base = b""
        if kind:
            place = nested(4, number(1, hook), number(2, priority & 0xFFFFFFFF))
            base = place + number(5, 1 if accepts else 0) + text(7, kind)
        self._add(_NEWCHAIN, CREATE, text(1, self._table) + text(3, name) + base)

    def rule(self, chain: str, *parts: bytes) -> None:
        """Append a rule."""
        self._add(_NEWRULE, CREATE | APPEND, text(1, self._table) + text(2, chain) + nested(4, *parts))

    def empty(self, chain: str) -> None:
        """Remove all rules of a chain."""
        self._add(_DELRULE, 0, text(1, self._table) + text(2, chain))

    def addresses(self, name: str, *, networks: bool = False) -> None:
        """A set of IPv4 addresses whose elements may expire, or of whole networks."""
        self._sets += 1
        flags = number(3, _INTERVAL if networks else _TIMEOUT)
        key = number(4, _ADDRESS_TYPE) + number(5, _ADDRESS_BYTES) + number(10, self._sets)
        self._add(_NEWSET, CREATE, text(1, self._table) + text(2, name) + flags + key)

    def add_networks(self, name: str, networks: Iterable[tuple[str, int]]) -> None:
        """Put networks (address, prefix length) into a set of networks. They must not overlap."""
        elements: list[bytes] = []
        for address, prefix in networks:
            (first,) = struct.unpack(">I", socket.inet_aton(address))
            after = first + (1 << 32 - prefix)
            elements.append(_element(struct.pack(">I", first)))
            if after <= 0xFFFFFFFF:
                elements.append(_element(struct.pack(">I", after), number(3, _INTERVAL_END)))
        self._elements(_NEWSETELEM, CREATE, name, elements)

    def add_addresses(self, name: str, addresses: Iterable[str], timeout_s: int) -> None:
        """Put addresses into a set until they expire."""
        expires = attribute(4, struct.pack(">Q", timeout_s * 1000))
        self._elements(
            _NEWSETELEM, CREATE, name, [_element(socket.inet_aton(address), expires) for address in addresses]
        )

    def remove_addresses(self, name: str, addresses: Iterable[str]) -> None:
        self._elements(_DELSETELEM, 0, name, [_element(socket.inet_aton(address)) for address in addresses])

    def clear(self, name: str) -> None:
        """Remove all elements of a set."""
        self._add(_DELSETELEM, 0, text(1, self._table) + text(2, name))

    def _elements(self, kind: int, flags: int, name: str, elements: Sequence[bytes]) -> None:
        if elements:
            self._add(kind, flags, text(1, self._table) + text(2, name) + nested(3, *elements))

    def apply(self, netlink: Netlink) -> None:
        """Raises OSError with the kernel's errno; nothing is changed then."""
        sent = [_message(_BEGIN, REQUEST, netlink.next(), _family(0, _SUBSYSTEM))]
        last = 0
        for place, (kind, flags, payload) in enumerate(self._parts):
            last = netlink.next()
            flags |= REQUEST | (ACK if place == len(self._parts) - 1 else 0)
            sent.append(_message(_SUBSYSTEM << 8 | kind, flags, last, _family(socket.AF_INET, 0) + payload))
        sent.append(_message(_END, REQUEST, netlink.next(), _family(0, _SUBSYSTEM)))
        netlink.send(sent, [last])


def _element(key: bytes, *more: bytes) -> bytes:
    return nested(1, nested(1, attribute(1, key)), *more)


def _family(family: int, resource: int) -> bytes:
    """struct nfgenmsg."""
    return struct.pack(">BBH", family, 0, resource)


def has_table(netlink: Netlink, name: str) -> bool:
    """Whether there is a table of that name."""
    try:
        netlink.ask(_SUBSYSTEM << 8 | _GETTABLE, 0, _family(socket.AF_INET, 0) + text(1, name))
    except FileNotFoundError:
        return False
    return True


def open_netlink() -> Netlink:
    """A socket for batches, in the network namespace of the moment."""
    return Netlink(NETFILTER)
