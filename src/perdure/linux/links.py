"""Network interfaces of one namespace: veth pairs, bridges, addresses, routes (rtnetlink(7)); taps (tun(4))."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from perdure.linux.netlink import CREATE, EXCL, ROUTE, Netlink, attribute, nested, number, text

# <linux/rtnetlink.h>, <linux/if_link.h>, <linux/if_addr.h>
_NEWLINK, _DELLINK, _GETLINK, _SETLINK, _NEWADDR, _NEWROUTE = 16, 17, 18, 19, 20, 24
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 10, 18, 28
_IFLA_PROTINFO = 12
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_BRPORT_ISOLATED = 33
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_OIF, _RTA_GATEWAY, _RT_TABLE_MAIN, _RTPROT_STATIC = 4, 5, 254, 4
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_REPLACE = 0x100  # NLM_F_REPLACE
_UP = 1  # IFF_UP
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC  # <linux/if_tun.h>
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x2, 0x1000, 0x4000
_TUN = "/dev/net/tun"


class Links:
    """The interfaces of the network namespace in which this was made. All methods raise OSError."""

    def __init__(self) -> None:
        self._netlink = Netlink(ROUTE)

    def close(self) -> None:
        self._netlink.close()

    def index(self, name: str) -> int:
        """Its number, 0: there is none of that name.

        Not asked by SIOCGIFINDEX, as if_nametoindex(3) does: for a name that it does not know the kernel starts
        modprobe(8), which took half of a resume in an emulated host.
        """
        try:
            answer = self._netlink.get(_GETLINK, _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return 0
            raise
        return int(_LINK.unpack_from(answer)[2])

    def up(self, name: str, *, mac: bytes = b"") -> None:
        """Bring it up; with ``mac`` (6 bytes) give it that address first."""
        index = self._known(name)
        if mac:
            self._netlink.ask(_NEWLINK, 0, _LINK.pack(0, 0, index, 0, 0) + attribute(_IFLA_ADDRESS, mac))
        self._netlink.ask(_NEWLINK, 0, _LINK.pack(0, 0, index, _UP, _UP))

    def add_bridge(self, name: str) -> None:
        """A bridge. Raises FileExistsError."""
        kind = nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "bridge"))
        self._netlink.ask(_NEWLINK, CREATE | EXCL, _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + kind)

    def add_veth(self, name: str, peer: str, namespace_fd: int, mac: bytes) -> None:
        """A pair of interfaces: ``name`` here, ``peer`` in the namespace of the descriptor. Each goes when the other
        does, as when its namespace does."""
        inside = _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, peer) + number(_IFLA_NET_NS_FD, namespace_fd)
        inside += attribute(_IFLA_ADDRESS, mac)
        data = nested(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER | 0x8000, inside))
        kind = nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "veth"), data)
        self._netlink.ask(_NEWLINK, CREATE | EXCL, _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + kind)

    def join(self, name: str, bridge: str, *, isolated: bool) -> None:
        """Make it a port of a bridge. Isolated ports reach the bridge itself, and none of each other."""
        index = self._known(name)
        self._netlink.ask(_NEWLINK, 0, _LINK.pack(0, 0, index, 0, 0) + number(_IFLA_MASTER, self._known(bridge)))
        if isolated:
            port = nested(_IFLA_PROTINFO, attribute(_IFLA_BRPORT_ISOLATED, b"\1"))
            self._netlink.ask(_SETLINK, 0, _LINK.pack(socket.AF_BRIDGE, 0, index, 0, 0) + port)

    def remove(self, name: str) -> None:
        """Delete it; none of that name: nothing happens."""
        if index := self.index(name):
            self._netlink.ask(_DELLINK, 0, _LINK.pack(0, 0, index, 0, 0))

    def add_address(self, name: str, address: str, prefix: int) -> None:
        """An IPv4 address with the length of its network's prefix."""
        packed = socket.inet_aton(address)
        head = _ADDRESS.pack(socket.AF_INET, prefix, 0, 0, self._known(name))
        both = attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
        self._netlink.ask(_NEWADDR, CREATE | EXCL, head + both)

    def add_default_route(self, name: str, gateway: str) -> None:
        """The one that there is, in the place of another."""
        head = _ROUTE.pack(socket.AF_INET, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, 1, 0)
        hop = attribute(_RTA_GATEWAY, socket.inet_aton(gateway)) + number(_RTA_OIF, self._known(name))
        self._netlink.ask(_NEWROUTE, CREATE | _REPLACE, head + hop)

    def _known(self, name: str) -> int:
        if index := self.index(name):
            return index
        raise FileNotFoundError(f"there is no network interface {name}")


def open_tap(name: str) -> int:
    """A tap in this process' namespace; it goes with the last copy of the descriptor. Raises OSError."""
    fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(fd, _TUNSETIFF, request)
    except BaseException:
        os.close(fd)
        raise
    return fd


def add_tap(name: str, owner: int) -> None:
    """A tap that stays without a process at it, in this process' namespace; the user ``owner`` may attach to it."""
    fd = open_tap(name)
    try:
        fcntl.ioctl(fd, _TUNSETOWNER, owner)
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)
