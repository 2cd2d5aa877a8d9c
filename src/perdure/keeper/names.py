"""Answers the guest's questions for names (DNS, RFC 1035): those of its networks, then those of the world.

The guest asks at its way out, 172.31.255.1. Names of other sandboxes come from a table that the node keeps; all else is
asked of the host's name servers, by a socket that was made outside of the machine's network. Where egress is
restricted, only permitted names are asked for, and what they stand for is opened (``permit``) before the guest hears of
it: what it looks up elsewhere, or makes up, stays closed.
"""

from __future__ import annotations

import os
import socket
import struct
import time

from perdure.execution.machine import configuration
from perdure.keeper.loop import READ, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Asked = tuple[tuple[str, int], int, bytes, str, float, int]  # client, its id, question, name, when, server

PORT = 53
_HEADER = struct.Struct(">HHHHHH")  # id, flags, questions, answers, authorities, additional
_A, _AAAA, _OPT, _IN = 1, 28, 41, 1
_RESPONSE, _AUTHORITATIVE, _RECURSION = 0x8000, 0x0400, 0x0180  # the last: desired and available
_SERVER_FAILED, _NO_SUCH_NAME, _REFUSED = 2, 3, 5
_MESSAGE_MAX = 65535
_PENDING_MAX = 512  # questions under way; a guest that floods is answered "server failed"
_PATIENCE_S = 10.0
_TTL_S = 5  # of a name of a sandbox, which may move


class Names:
    """``upstream`` is made by ``outside()`` before the keeper leaves the host's network."""

    def __init__(self, loop: Loop, upstream: socket.socket, permit: Callable[[list[str]], None]) -> None:
        self._loop, self._upstream, self._permit = loop, upstream, permit
        self._table: Mapping[str, str] = {}
        self._servers: Sequence[str] = ()
        self._allowed: Sequence[str] | None = None
        self._pending: dict[int, Asked] = {}
        self._listening: socket.socket | None = None

    @staticmethod
    def outside() -> socket.socket:
        """The socket that name servers are asked by, in the network of the moment."""
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        asking.bind(("", 0))
        asking.setblocking(False)
        return asking

    def open(self) -> None:
        """Listen in the machine's network."""
        listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        listening.bind((configuration.HOST_ADDRESS, PORT))
        listening.setblocking(False)
        self._listening = listening
        self._loop.watch(listening.fileno(), READ, self._asked)
        self._loop.watch(self._upstream.fileno(), READ, self._answered)

    def close(self) -> None:
        for one in (self._listening, self._upstream):
            if one is not None:
                self._loop.forget(one.fileno())
                one.close()
        self._listening = None

    def know(self, servers: Sequence[str], allowed: Sequence[str] | None) -> None:
        """Whom to ask, and for which names only (None: for all); ``*.example.org`` is all below it."""
        self._servers, self._allowed = servers, allowed

    def list(self, table: Mapping[str, str]) -> None:
        """The names of other sandboxes, with their addresses."""
        self._table = {name.lower(): address for name, address in table.items()}

    # From the guest

    def _asked(self, _mask: int) -> None:
        assert self._listening is not None
        try:
            data, client = self._listening.recvfrom(_MESSAGE_MAX)
        except OSError:
            return
        try:
            number, flags, question, name, kind = _question(data)
        except (ValueError, struct.error, IndexError):
            return  # nobody who means it sends this
        if flags & _RESPONSE:
            return
        if name in self._table:
            self._say(client, _reply(number, question, [self._table[name]] if kind == _A else []))
        elif not self._servers or not self._is_allowed(name):
            self._say(client, _reply(number, question, code=_NO_SUCH_NAME))
        elif kind == _AAAA:
            self._say(client, _reply(number, question))  # there is no IPv6 in here
        else:
            self._ask(client, number, data, question, name)

    def _is_allowed(self, name: str) -> bool:
        if self._allowed is None:
            return True
        return any(
            name == wanted or (wanted.startswith("*.") and name.endswith(wanted[1:])) for wanted in self._allowed
        )

    def _ask(self, client: tuple[str, int], number: int, data: bytes, question: bytes, name: str) -> None:
        now, server = time.monotonic(), 0
        for own, asked in list(self._pending.items()):
            if asked[0] == client and asked[1] == number and asked[2] == question:
                server = (asked[5] + 1) % len(self._servers)  # it asks again: the one before may be away
                del self._pending[own]
            elif now - asked[4] > _PATIENCE_S:
                del self._pending[own]
        if len(self._pending) >= _PENDING_MAX:
            self._say(client, _reply(number, question, code=_SERVER_FAILED))
            return
        own = int.from_bytes(os.urandom(2), "big")
        while own in self._pending:
            own = (own + 1) & 0xFFFF
        for _ in self._servers:
            try:
                self._upstream.sendto(struct.pack(">H", own) + data[2:], (self._servers[server], PORT))
            except OSError:  # there is no way to this one
                server = (server + 1) % len(self._servers)
                continue
            self._pending[own] = (client, number, question, name, now, server)
            return
        self._say(client, _reply(number, question, code=_SERVER_FAILED))

    # From a name server

    def _answered(self, _mask: int) -> None:
        try:
            data, (address, port) = self._upstream.recvfrom(_MESSAGE_MAX)
        except OSError:
            return
        try:
            own, flags, question, _, _ = _question(data)
        except (ValueError, struct.error, IndexError):
            return
        asked = self._pending.get(own)
        if asked is None or port != PORT or address != self._servers[asked[5] % len(self._servers)]:
            return
        client, number, wanted, _, _, _ = asked
        if not flags & _RESPONSE or question.lower() != wanted.lower():
            return  # somebody guesses
        del self._pending[own]
        if self._allowed is not None:
            try:
                found = _addresses(data, _HEADER.size + len(question))
                if found:
                    self._permit(found)
            except (ValueError, struct.error, IndexError, OSError):
                self._say(client, _reply(number, wanted, code=_SERVER_FAILED))
                return
        self._say(client, struct.pack(">H", number) + data[2:])

    def _say(self, client: tuple[str, int], data: bytes) -> None:
        assert self._listening is not None
        try:
            self._listening.sendto(data, client)
        except OSError:
            pass  # its queue is full: it asks again


def _question(data: bytes) -> tuple[int, int, bytes, str, int]:
    """(id, flags, the question's bytes, its name in lower case, its type). Raises ValueError, IndexError, struct.error
    where it is not one question."""
    number, flags, questions, _, _, _ = _HEADER.unpack_from(data)
    if questions != 1:
        raise ValueError("not one question")
    labels, at = [], _HEADER.size
    while size := data[at]:
        if size > 63:
            raise ValueError("a question's name is not compressed")
        labels.append(data[at + 1 : at + 1 + size].decode("ascii").lower())
        at += 1 + size
    kind, cls = struct.unpack_from(">HH", data, at + 1)
    if cls != _IN:
        raise ValueError("not of the internet")
    return number, flags, data[_HEADER.size : at + 5], ".".join(labels), kind


def _addresses(data: bytes, at: int) -> list[str]:
    """The IPv4 addresses of all answers, which begin at ``at``."""
    found = []
    for _ in range(_HEADER.unpack_from(data)[3]):
        while size := data[at]:
            if size >= 0xC0:  # a pointer ends a name
                at += 1
                break
            at += 1 + size
        kind, cls, _, length = struct.unpack_from(">HHIH", data, at + 1)
        at += 11
        if kind == _A and cls == _IN and length == 4:
            found.append(socket.inet_ntoa(data[at : at + 4]))
        at += length
    return found


def _reply(number: int, question: bytes, addresses: Sequence[str] = (), code: int = 0) -> bytes:
    flags = _RESPONSE | _RECURSION | (_AUTHORITATIVE if addresses else 0) | code
    head = _HEADER.pack(number, flags, 1, len(addresses), 0, 0)
    record = struct.pack(">HHHIH", 0xC000 | _HEADER.size, _A, _IN, _TTL_S, 4)
    return head + question + b"".join(record + socket.inet_aton(address) for address in addresses)
