"""Netlink sockets: requests with attributes, acknowledged one by one (netlink(7), rtnetlink(7)).

A socket stays in the network namespace in which it was made, also when its process leaves that for another one.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ROUTE, NETFILTER = 0, 12  # <linux/netlink.h>: NETLINK_ROUTE, NETLINK_NETFILTER
REQUEST, ACK, EXCL, CREATE, APPEND = 0x1, 0x4, 0x200, 0x400, 0x800  # NLM_F_*
_ERROR, _DONE = 2, 3  # NLMSG_*
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_ERRNO = struct.Struct("=i")
_NESTED = 0x8000  # NLA_F_NESTED
_TIMEOUT_S = 10.0
_BUFFER = 65536


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    """An attribute that is a string, ended by a zero."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int, order: str = "=") -> bytes:
    """An attribute of 32 bits; rtnetlink has them in the machine's order, nf_tables in the network's (``>``)."""
    return attribute(kind, struct.pack(f"{order}I", value))


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """One message, padded."""
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags, sequence, 0) + payload + bytes(-len(payload) % 4)


class Netlink:
    """A socket of one family, in the network namespace of the moment. Closes with ``close``."""

    def __init__(self, family: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def next(self) -> int:
        """A sequence number for the next message."""
        self._sequence += 1
        return self._sequence

    def ask(self, kind: int, flags: int, payload: bytes) -> None:
        """One request, done when this returns. Raises OSError with the kernel's errno."""
        number = self.next()
        self.send([message(kind, REQUEST | ACK | flags, number, payload)], [number])

    def get(self, kind: int, payload: bytes) -> bytes:
        """The kernel's one answer to a question, without its header. Raises OSError with the kernel's errno."""
        number = self.next()
        self._socket.send(message(kind, REQUEST, number, payload))
        while True:
            data = self._socket.recv(_BUFFER)
            length, kind, _, sequence, _ = _HEADER.unpack_from(data)
            if sequence != number:
                continue
            if kind == _ERROR:
                (code,) = _ERRNO.unpack_from(data, _HEADER.size)
                raise OSError(-code, os.strerror(-code))
            return data[_HEADER.size : length]

    def send(self, messages: Sequence[bytes], acknowledged: Sequence[int]) -> None:
        """Send all at once, and wait until those with these sequence numbers are acknowledged.

        Raises OSError of the first one that the kernel refused.
        """
        self._socket.send(b"".join(messages))
        waiting = set(acknowledged)
        while waiting:
            data = self._socket.recv(_BUFFER)
            at = 0
            while at + _HEADER.size <= len(data):
                length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
                if kind == _ERROR:
                    (code,) = _ERRNO.unpack_from(data, at + _HEADER.size)
                    if code:
                        self._drain()
                        raise OSError(-code, os.strerror(-code))
                    waiting.discard(sequence)
                at += max(length + -length % 4, _HEADER.size)

    def _drain(self) -> None:
        """Forget the answers to what else was sent: nobody waits for them."""
        self._socket.setblocking(False)
        try:
            while self._socket.recv(_BUFFER):
                pass
        except BlockingIOError:
            pass
        finally:
            self._socket.settimeout(_TIMEOUT_S)


def is_there(error: OSError) -> bool:
    """Whether it says that what was to be made is there already."""
    return error.errno == errno.EEXIST
