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
from perdure.keeper.loop import READ, Loop, harmless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Asked = tuple[tuple[str, int], int, bytes, str, float, str]  # client, its id, question, name, when, server

PORT = 53
_HEADER = struct.Struct(">HHHHHH")  # id, flags, questions, answers, authorities, additional
_A, _AAAA, _OPT, _IN = 1, 28, 41, 1
_RESPONSE, _AUTHORITATIVE, _RECURSION = 0x8000, 0x0400, 0x0180  # the last: desired and available
_OPCODE, _WISHES = 0x7800, 0x0110  # recursion desired, checking disabled
_PAYLOAD_BYTES = 4096  # of an answer, to who says that it understands more than 512 (RFC 6891)
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
        self._loop.watch(listening.fileno(), READ, harmless(self._asked))
        self._loop.watch(self._upstream.fileno(), READ, harmless(self._answered))

    def close(self) -> None:
        for one in (self._listening, self._upstream):
            if one is not None:
                self._loop.forget(one.fileno())
                one.close()
        self._listening = None

    def know(self, servers: Sequence[str], allowed: Sequence[str] | None) -> None:
        """Whom to ask, and for which names only (None: for all); ``*.example.org`` is all below it."""
        self._servers, self._allowed = list(servers), allowed
        self._pending.clear()  # their answers are not waited for: who asked asks again

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
        if flags & (_RESPONSE | _OPCODE):
            return  # updates and notices are no questions
        if name in self._table:
            self._say(client, _reply(number, question, [self._table[name]] if kind == _A else []))
        elif not self._servers or not self._is_allowed(name):
            self._say(client, _reply(number, question, code=_NO_SUCH_NAME))
        elif kind == _AAAA:
            self._say(client, _reply(number, question))  # there is no IPv6 in here
        else:
            self._ask(client, number, _asking(data, flags, question), question, name)

    def _is_allowed(self, name: str) -> bool:
        if self._allowed is None:
            return True
        return any(
            name == wanted or (wanted.startswith("*.") and name.endswith(wanted[1:])) for wanted in self._allowed
        )

    def _ask(self, client: tuple[str, int], number: int, data: bytes, question: bytes, name: str) -> None:
        now, first = time.monotonic(), 0
        for own, asked in list(self._pending.items()):
            if asked[0] == client and asked[1] == number and asked[2] == question:
                first = self._servers.index(asked[5]) + 1  # it asks again: the one before may be away
                del self._pending[own]
            elif now - asked[4] > _PATIENCE_S:
                del self._pending[own]
        if len(self._pending) >= _PENDING_MAX:
            self._say(client, _reply(number, question, code=_SERVER_FAILED))
            return
        own = int.from_bytes(os.urandom(2), "big")
        while own in self._pending:
            own = (own + 1) & 0xFFFF
        for place in range(first, first + len(self._servers)):
            server = self._servers[place % len(self._servers)]
            try:
                self._upstream.sendto(struct.pack(">H", own) + data, (server, PORT))
            except OSError:  # there is no way to this one
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
        if asked is None or port != PORT or address != asked[5]:
            return
        client, number, wanted, name, _, _ = asked
        if not flags & _RESPONSE or question.lower() != wanted.lower():
            return  # somebody guesses
        del self._pending[own]
        if self._allowed is not None:
            try:
                found = _addresses(data, _HEADER.size + len(question))
                if opened := [one for one in found if _may_be_opened(one, is_exact=name in self._allowed)]:
                    self._permit(opened)
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


def _asking(data: bytes, flags: int, question: bytes) -> bytes:
    """The same question in our words, without its id: nothing else that a guest says leaves the host."""
    extended = data[_HEADER.size + len(question) :][:3] == struct.pack(">BH", 0, _OPT)
    head = struct.pack(">HHHHH", flags & _WISHES, 1, 0, 0, 1 if extended else 0)
    return head + question + (struct.pack(">BHHIH", 0, _OPT, _PAYLOAD_BYTES, 0, 0) if extended else b"")


def _may_be_opened(address: str, *, is_exact: bool) -> bool:
    """Whether a permitted name may stand for it: not for the host itself, nor for what is link-local (where clouds give
    their keys); for a private network only where the name was permitted by itself, not as one below another."""
    first, second, *_ = (int(part) for part in address.split("."))
    if first in (0, 127) or first >= 224 or (first, second) == (169, 254):
        return False
    private = first == 10 or (first == 172 and 16 <= second < 32) or (first, second) == (192, 168)
    return is_exact or not (private or (first == 100 and 64 <= second < 128))


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
